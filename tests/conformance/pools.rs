//! The pool of receive buffers: too small, with leases that are kept or leaked. Exhaustion is not
//! an event, and every connection makes progress.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use proactor::*;
use std::io::{Read, Write};
use std::time::Duration;

fn fifty_connections(config: Config, keep: usize) {
    let mut rig = Rig::with(config);
    let (_, addr) = rig.listen();
    let client = spawn(move || {
        let streams: Vec<_> = (0..50).map(|_| connect(addr).unwrap()).collect();
        let workers: Vec<_> = streams
            .into_iter()
            .enumerate()
            .map(|(index, mut stream)| {
                spawn(move || {
                    let bytes = pattern(30_000 + index);
                    let mut writer = stream.try_clone().unwrap();
                    let copy = bytes.clone();
                    let write = spawn(move || {
                        writer.write_all(&copy).unwrap();
                        writer.shutdown(std::net::Shutdown::Write).unwrap();
                    });
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).unwrap();
                    write.join().unwrap();
                    assert!(
                        back == bytes,
                        "connection {index}: {} of {} bytes",
                        back.len(),
                        bytes.len()
                    );
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let mut kept = std::collections::VecDeque::new();
    rig.run("all fifty", |engine, completion| {
        let Some(completion) = completion else { return client.is_finished() };
        if let (Event::Received(data), true) = (&completion.event, keep > 0) {
            // Send a copy back and keep the lease.
            engine.send(completion.conn, data.to_vec()).unwrap();
            let Event::Received(data) = completion.event else { unreachable!() };
            kept.push_back(data);
            if kept.len() > keep {
                kept.pop_front();
            }
        } else {
            serve_echo(engine, completion);
        }
        false
    });
    client.join().unwrap();
}

pub fn fifty_connections_on_one_buffer(variant: &Variant) {
    fifty_connections(variant.config().buffers(1, 2048), 0);
    fifty_connections(variant.config().buffers(1, 64), 0);
}

pub fn fifty_connections_on_two_buffers(variant: &Variant) {
    fifty_connections(variant.config().buffers(2, 1024), 0);
}

pub fn leases_kept_for_long(variant: &Variant) {
    // A hundred leases are kept of a pool of four. Without a free buffer the engine copies, and
    // counts the copies.
    fifty_connections(variant.config().buffers(4, 512), 100);
    let mut rig = Rig::with(variant.config().buffers(2, 4096));
    let (conn, mut peer) = rig.pair();
    let mut kept = Vec::new();
    let bytes = pattern(60_000);
    for chunk in bytes.chunks(3000) {
        peer.write_all(chunk).unwrap();
        let mut got = 0;
        rig.run("data", |_, completion| {
            if let Some(Completion { conn: from, event: Event::Received(data), .. }) = completion {
                assert_eq!(from, conn);
                got += data.len();
                kept.push(data);
            }
            got == chunk.len()
        });
    }
    assert!(kept.iter().flat_map(|lease| lease.to_vec()).collect::<Vec<u8>>() == bytes);
    assert!(rig.engine.stats().heap_copies >= 15 && kept[kept.len() - 1].is_copy());
}

pub fn leaked_leases_only_shrink_the_pool(variant: &Variant) {
    let mut rig = Rig::with(variant.config().buffers(8, 1024));
    let (conn, mut peer) = rig.pair();
    for round in 0..50u8 {
        peer.write_all(&[round; 700]).unwrap();
        let mut got = 0;
        rig.run("data", |_, completion| {
            if let Some(Completion { conn: from, event: Event::Received(data), .. }) = completion {
                assert!(from == conn && data.iter().all(|byte| *byte == round));
                got += data.len();
                std::mem::forget(data);
            }
            got == 700
        });
    }
}

pub fn leases_outlive_the_engine(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (_conn, mut peer) = rig.pair();
    peer.write_all(b"still here").unwrap();
    let mut lease = rig.next_lease();
    drop(rig);
    assert!(b"still here".starts_with(&lease) && (lease.len() == 10 || variant.is_faulty()));
    lease[0] = b'S';
    assert!(b"Still here".starts_with(&lease));
}

pub fn hot_connections_leave_room(variant: &Variant) {
    // One connection floods, another sends one byte. The budget lets the byte through within a few
    // polls.
    let mut rig = Rig::with(variant.config().tuning(Tuning::default().budget(4)).buffers(64, 1024));
    let (fast, mut fast_peer) = rig.pair();
    let (slow, mut slow_peer) = rig.pair();
    rig.completions = Completions::with_capacity(16);
    fast_peer.write_all(&pattern(200_000)).unwrap();
    slow_peer.write_all(b"?").unwrap();
    sleep(Duration::from_millis(50));
    let (mut from_fast, mut from_slow) = (Vec::new(), None);
    for poll in 0..2000 {
        for completion in rig.poll(Duration::from_millis(20)) {
            match completion.event {
                Event::Received(data) if completion.conn == slow => {
                    from_slow = from_slow.or(Some((poll, data.len())))
                }
                Event::Received(data) if completion.conn == fast => {
                    from_fast.extend_from_slice(&data)
                }
                other => panic!("{other:?}"),
            }
        }
        if from_slow.is_some() && from_fast.len() == 200_000 {
            break;
        }
    }
    assert!(from_slow.is_some_and(|(poll, len)| poll < 12 && len == 1), "{from_slow:?}");
    assert!(from_fast == pattern(200_000), "deferred data is out of order");
}

pub fn floods_stay_bounded(variant: &Variant) {
    // Peers send faster than the caller handles completions. What is received and not delivered
    // stays bounded; the rest stays in the kernel.
    let mut rig = Rig::with(variant.config().tuning(Tuning::default().budget(1)).buffers(512, 256));
    rig.completions = Completions::with_capacity(8);
    let total = 4 << 20;
    let pairs: Vec<_> = (0..3).map(|_| rig.pair()).collect();
    let writers: Vec<_> = pairs
        .into_iter()
        .map(|(_, mut peer)| spawn(move || peer.write_all(&pattern(total)).unwrap()))
        .collect();
    let (mut seen, mut delivered) = (std::collections::HashMap::<ConnId, usize>::new(), 0);
    let expected = pattern(total);
    rig.run("the floods", |engine, completion| {
        if let Some(Completion { conn, event: Event::Received(data), .. }) = completion {
            delivered += 1;
            let got = seen.entry(conn).or_default();
            assert!(data[..] == expected[*got..*got + data.len()]);
            *got += data.len();
            let held = engine.stats().receives - delivered;
            assert!(held <= 100, "{held} receives are not delivered");
        }
        seen.len() == 3 && seen.values().all(|got| *got == total)
    });
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}
