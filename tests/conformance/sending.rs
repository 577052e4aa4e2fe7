//! Sends: order, tags, gathered and empty payloads, the limits of the send queue, zero-copy.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use bytes::{Bytes, BytesMut};
use proactor::*;
use std::io::{Read, Write};
use std::time::Duration;

pub fn many_small_writes_in_order(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, peer) = rig.pair();
    let reader = spawn(move || read_all(peer));
    let mut expected = Vec::new();
    for number in 0..20_000u32 {
        let text = format!("{number},");
        expected.extend_from_slice(text.as_bytes());
        loop {
            let accepted = match number % 3 {
                0 => rig.engine.write(conn, text.as_bytes()).is_ok(),
                1 => rig.engine.send(conn, text.clone()).is_ok(),
                _ => rig.engine.send(conn, Bytes::from(text.clone())).is_ok(),
            };
            if accepted {
                break;
            }
            rig.poll(Duration::from_millis(10));
        }
        if number % 1000 == 0 {
            rig.poll(Duration::ZERO);
        }
    }
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).unsent_bytes, 0);
    assert!(reader.join().unwrap() == expected);
}

pub fn tagged_sends(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    for tag in 0..100 {
        rig.engine.send_tagged(conn, "x", tag).unwrap();
        rig.engine.send(conn, "y").unwrap();
    }
    let mut tags = Vec::new();
    rig.run("all tags", |_, completion| {
        if let Some(Completion { event: Event::Sent { tag }, .. }) = completion {
            tags.push(tag);
        }
        tags.len() == 100
    });
    assert_eq!(tags, (0..100).collect::<Vec<_>>());
    let mut bytes = [0; 200];
    peer.read_exact(&mut bytes).unwrap();
}

pub fn zero_length_sends(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.send_tagged(conn, "", 1).unwrap();
    rig.engine.write(conn, b"").unwrap();
    rig.engine.send_tagged(conn, Vec::new(), 2).unwrap();
    rig.engine.send_tagged(conn, "real", 3).unwrap();
    rig.engine.send_tagged(conn, "", 4).unwrap();
    let mut tags = Vec::new();
    rig.run("all tags", |_, completion| {
        if let Some(Completion { event: Event::Sent { tag }, .. }) = completion {
            tags.push(tag);
        }
        tags.len() == 4
    });
    assert_eq!(tags, [1, 2, 3, 4]);
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"real");
    // A queue that is full of empty payloads drains, and reports it.
    while rig.engine.send(conn, "").is_ok() {}
    rig.until("room", |_, completion| matches!(completion.event, Event::Drained).then_some(()));
    rig.engine.send(conn, "").unwrap();
    // A receive of zero bytes is refused: its event would look like the end of the stream.
    assert!(matches!(rig.engine.recv_into(conn, BytesMut::new(), 0), Err(Error::State(_))));
}

pub fn gathered_payloads_of_every_kind(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"lease").unwrap();
    let mut leases = vec![rig.next_lease()];
    while leases.iter().map(|lease| lease.len()).sum::<usize>() < 5 {
        leases.push(rig.next_lease());
    }
    let before = rig.engine.stats().sends;
    for lease in leases {
        rig.engine.send(conn, lease).unwrap();
    }
    rig.engine.send(conn, " static").unwrap();
    rig.engine.send(conn, b" bytes").unwrap();
    rig.engine.send(conn, String::from(" string")).unwrap();
    rig.engine.send(conn, Bytes::from_static(b" shared")).unwrap();
    rig.engine.send(conn, BytesMut::from(&b" mut"[..])).unwrap();
    rig.engine.send(conn, vec![b' ', b'v'].into_boxed_slice()).unwrap();
    rig.engine.write(conn, b" copied").unwrap();
    let expected = b"lease static bytes string shared mut v copied";
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let sends = rig.engine.stats().sends - before;
    assert!(
        sends == 1 || variant.is_faulty(),
        "{sends} sends: one batch takes all payloads that were queued"
    );
    let mut bytes = vec![0; expected.len()];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

pub fn watermarks_bound_memory(variant: &Variant) {
    let (high, low, piece) = (256 << 10, 64 << 10, 16 << 10);
    let mut rig = Rig::with(variant.config().send_watermarks(high, low));
    let (conn, mut peer) = rig.pair();
    let mut sent = 0usize;
    // The peer does not read: the queue fills, and the refused payload comes back unchanged.
    let deadline = now() + patience();
    let mut quiet = 0;
    while quiet < 20 {
        assert!(now() < deadline, "the queue never filled");
        match rig.engine.send(conn, vec![(sent / piece) as u8; piece]) {
            Ok(()) => (sent, quiet) = (sent + piece, 0),
            Err(SendError::Full(back)) => {
                assert_eq!(back.as_slice(), vec![(sent / piece) as u8; piece]);
                quiet += 1;
                for completion in rig.poll(Duration::from_millis(5)) {
                    assert!(matches!(completion.event, Event::Drained), "{:?}", completion.event);
                }
                // The kernel may still accept some, in small parts on a slow network.
                if rig.engine.queued_bytes(conn).unwrap() < high {
                    quiet = 0;
                }
            }
            Err(error) => panic!("{error}"),
        }
        let queued = rig.engine.queued_bytes(conn).unwrap();
        assert!(queued < high + piece, "{queued} bytes queued");
    }
    assert_eq!(rig.engine.write(conn, b"x"), Err(WriteError::Full));
    // The peer starts to read: one `Drained` comes, below the low watermark, and nothing is lost.
    let total = sent;
    let reader = spawn(move || {
        let mut bytes = vec![0; total];
        peer.read_exact(&mut bytes).unwrap();
        (bytes, peer)
    });
    let mut drained = 0;
    rig.run("everything sent", |engine, completion| {
        if let Some(Completion { event: Event::Drained, .. }) = completion {
            assert!(engine.queued_bytes(conn).unwrap() <= low);
            drained += 1;
        }
        engine.queued_bytes(conn).unwrap() == 0 && drained > 0
    });
    assert_eq!(drained, 1);
    let (bytes, _peer) = reader.join().unwrap();
    assert!(
        bytes
            .chunks(piece)
            .enumerate()
            .all(|(index, chunk)| chunk.iter().all(|byte| *byte == index as u8))
    );
}

pub fn entry_limit_is_full(variant: &Variant) {
    let mut rig = Rig::with(variant.config().tuning(Tuning::default().send_entries_max(10)));
    let (conn, mut peer) = rig.pair();
    for _ in 0..10 {
        rig.engine.send(conn, "x").unwrap();
    }
    assert!(rig.engine.send(conn, "y").is_err_and(|error| error.is_full()));
    rig.until("room", |_, completion| matches!(completion.event, Event::Drained).then_some(()));
    rig.engine.send(conn, "z").unwrap();
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let mut bytes = [0; 11];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"xxxxxxxxxxz");
}

pub fn zero_copy_sends(variant: &Variant) {
    // On loopback the notification of a zero-copy send comes only when the peer has read. The
    // payloads must live until then.
    let mut rig = Rig::with(variant.config().tuning(zero_copy(10_000)));
    let (conn, peer) = rig.pair();
    let reader = spawn(move || {
        sleep(Duration::from_millis(50));
        read_all(peer)
    });
    let bytes = pattern(6 << 20);
    for chunk in bytes.chunks(50_000) {
        rig.send_all(conn, chunk.to_vec());
        rig.send_all(conn, "small");
    }
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).unsent_bytes, 0);
    let expected: Vec<u8> =
        bytes.chunks(50_000).flat_map(|chunk| [chunk, b"small"].concat()).collect();
    assert!(reader.join().unwrap() == expected);
    let zero_copy = rig.engine.stats().zero_copy_sends;
    assert_eq!(zero_copy > 0, rig.uses(Capability::SendZc), "{zero_copy} zero-copy sends");
}
