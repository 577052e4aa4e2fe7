//! Many connections, and queues that are too small for them.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use proactor::*;
use std::collections::HashMap;
use std::time::Duration;

/// Opens `total` connections from an engine to itself, at most `at_once` at a time. Each sends one
/// message, receives its echo, and closes or aborts at random.
fn churn(rig: &mut Rig, total: usize, at_once: usize, message: usize) {
    let (_, addr) = rig.listen();
    let (mut opened, mut random) = (0usize, 88172645463325252u64);
    let mut open: HashMap<ConnId, usize> = HashMap::new();
    let mut served = 0;
    rig.run("the churn", |engine, completion| {
        while open.len() < at_once && opened < total {
            // Many source addresses, so that ephemeral ports do not run out.
            let local = std::net::SocketAddr::from((
                [127, 0, (opened / 250 % 250) as u8, (opened % 250 + 1) as u8],
                0,
            ));
            let conn = engine
                .connect(
                    addr,
                    ConnectOptions { local: Some(local), tag: 1, ..ConnectOptions::default() },
                )
                .unwrap();
            engine.send(conn, vec![opened as u8; message]).unwrap();
            open.insert(conn, 0);
            opened += 1;
        }
        let Some(completion) = completion else {
            return served == total && engine.connections() == 0;
        };
        let conn = completion.conn;
        match completion.event {
            Event::Received(data) if completion.tag == 1 => {
                if let Some(got) = open.get_mut(&conn) {
                    *got += data.len();
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    match *got == message {
                        true if random % 2 == 0 => engine.close(conn).unwrap(),
                        true => engine.abort(conn).unwrap(),
                        false => {}
                    }
                }
            }
            Event::Closed(reason) if completion.tag == 1 => {
                assert!(matches!(reason.kind, CloseKind::Local | CloseKind::Aborted), "{reason}");
                assert_eq!(open.remove(&conn), Some(message), "ended before its echo arrived");
                served += 1;
            }
            _ if completion.tag == 1 => {}
            _ => serve_echo(engine, completion),
        }
        false
    });
}

pub fn nine_thousand_connections(variant: &Variant) {
    // Both ends are in this process, so eighteen thousand descriptors are opened and closed.
    let mut rig = Rig::new(variant);
    churn(&mut rig, 9_000, 600, 200);
    assert_eq!(rig.engine.stats().accepted, 9_000);
    assert_eq!(rig.engine.stats().unknown_completions, 0);
}

pub fn tiny_queues(variant: &Variant) {
    // A ring with two submission and four completion entries: slow, and nothing is lost.
    let mut rig = Rig::with(variant.config().tuning(Tuning::default().ring_entries(2, 4)));
    churn(&mut rig, 150, 40, 3_000);
    let (conn, peer) = rig.pair();
    let bytes = pattern(3 << 20);
    let reader = spawn(move || read_all(peer));
    for chunk in bytes.chunks(10_000) {
        rig.send_all(conn, chunk.to_vec());
    }
    rig.engine.close(conn).unwrap();
    rig.wait_closed(conn);
    assert!(reader.join().unwrap() == bytes);
}

pub fn completions_with_room_for_one(variant: &Variant) {
    let mut rig = Rig::new(variant);
    rig.completions = Completions::with_capacity(1);
    churn(&mut rig, 60, 20, 500);
    // A poll with full completions returns at once and keeps them.
    let (conn, mut peer) = rig.pair();
    std::io::Write::write_all(&mut peer, b"xy").unwrap();
    let mut full = Completions::with_capacity(1);
    while full.is_empty() {
        rig.engine.poll(&mut full, Some(Duration::from_secs(1))).unwrap();
    }
    assert_eq!(
        rig.engine.poll(&mut full, None).unwrap(),
        0,
        "a poll with full completions does not wait"
    );
    assert_eq!((full.len(), full.pop().map(|completion| completion.conn)), (1, Some(conn)));
}
