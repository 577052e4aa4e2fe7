//! Bytes in both directions: order, completeness, flow control, half-close.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use bytes::{Bytes, BytesMut};
use proactor::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

/// An echo connection of the engine with a blocking client.
fn echo_for(rig: &mut Rig, client: impl FnOnce(Peer) + Send + 'static) {
    let (_, addr) = rig.listen();
    let client = spawn(move || {
        let stream = connect(addr).unwrap();
        client(stream);
    });
    let mut waiting: Vec<(ConnId, Payload)> = Vec::new();
    rig.run("the client", |engine, completion| {
        waiting = std::mem::take(&mut waiting)
            .into_iter()
            .filter_map(|(conn, payload)| match engine.send(conn, payload) {
                Err(SendError::Full(back)) => Some((conn, back)),
                _ => {
                    let _ = engine.resume_reads(conn);
                    None
                }
            })
            .collect();
        let Some(completion) = completion else {
            return client.is_finished() && engine.connections() == 0;
        };
        let conn = completion.conn;
        match completion.event {
            Event::Received(data) => {
                if let Err(error) = engine.send(conn, data) {
                    engine.pause_reads(conn).unwrap();
                    waiting.push((conn, error.into_payload()));
                }
            }
            Event::ReadClosed => engine.close(conn).unwrap(),
            _ => {}
        }
        false
    });
    client.join().unwrap();
}

pub fn echo_one_byte_at_a_time(variant: &Variant) {
    echo_for(&mut Rig::new(variant), |mut stream| {
        for byte in pattern(300) {
            stream.write_all(&[byte]).unwrap();
            let mut back = [0];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, [byte]);
        }
    });
}

pub fn echo_64_mib(variant: &Variant) {
    // One payload of 64 MiB, far beyond the high watermark, to a peer that echoes nothing until it
    // has all.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let bytes = pattern(64 << 20);
    let expected = bytes.clone();
    let reader = spawn(move || {
        let mut seen = vec![0; expected.len()];
        peer.read_exact(&mut seen).unwrap();
        assert!(seen == expected, "64 MiB arrived otherwise than sent");
        peer.write_all(&seen).unwrap();
    });
    rig.engine.send_tagged(conn, bytes.clone(), 64).unwrap();
    let (mut back, mut sent) = (0, false);
    rig.run("the echo", |_, completion| {
        match completion.map(|completion| completion.event) {
            Some(Event::Received(data)) => {
                assert!(
                    data[..] == bytes[back..back + data.len()],
                    "the echo differs near byte {back}"
                );
                back += data.len();
            }
            Some(Event::Sent { tag }) => sent = tag == 64,
            _ => {}
        }
        back == bytes.len()
    });
    assert!(sent);
    reader.join().unwrap();
}

pub fn many_small_writes_in_order(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, peer) = rig.pair();
    let reader = spawn(move || read_all(peer));
    let mut expected = Vec::new();
    for number in 0..20_000u32 {
        let text = format!("{number},");
        expected.extend_from_slice(text.as_bytes());
        loop {
            let taken = match number % 3 {
                0 => rig.engine.write(conn, text.as_bytes()).is_ok(),
                1 => rig.engine.send(conn, text.clone()).is_ok(),
                _ => rig.engine.send(conn, Bytes::from(text.clone())).is_ok(),
            };
            if taken {
                break;
            }
            rig.poll(Duration::from_millis(10));
        }
        if number % 1000 == 0 {
            rig.poll(Duration::ZERO);
        }
    }
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.end_of(conn).unsent_bytes, 0);
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
    // A queue that is full of nothing empties too, and says so.
    while rig.engine.send(conn, "").is_ok() {}
    rig.until("room", |_, completion| matches!(completion.event, Event::Drained).then_some(()));
    rig.engine.send(conn, "").unwrap();
    // And a receive of no bytes is refused: it would look like the end of the stream.
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
        "{sends} sends: all that a turn queued leaves in one operation"
    );
    let mut bytes = vec![0; expected.len()];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

pub fn peer_half_closes_first(variant: &Variant) {
    // What is still unsent when the peer's FIN arrives is sent all the same.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"last words").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    let mut data = Vec::new();
    rig.run("the peer's FIN", |_, completion| {
        match completion.map(|completion| completion.event) {
            Some(Event::Received(lease)) => {
                data.extend_from_slice(&lease);
                false
            }
            Some(Event::ReadClosed) => {
                data.push(b'.');
                true
            }
            Some(other) => panic!("{other:?}"),
            None => data.ends_with(b"."),
        }
    });
    assert_eq!(data, b"last words.");
    assert!(
        rig.watch(Duration::from_millis(20)).is_empty(),
        "one ReadClosed, and the connection stays"
    );
    let answer = pattern(3 << 20);
    rig.engine.send(conn, answer.clone()).unwrap();
    let reader = spawn(move || read_all(peer));
    rig.run("the answer", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.end_of(conn).kind, CloseKind::PeerClosed);
    assert!(reader.join().unwrap() == answer);
}

pub fn we_half_close_first(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.send(conn, "request").unwrap();
    rig.engine.shutdown_write(conn).unwrap();
    assert!(matches!(rig.engine.send(conn, "more"), Err(SendError::Closed(_))));
    assert_eq!(rig.engine.write(conn, b"more"), Err(WriteError::Closed));
    let server = spawn(move || {
        let mut request = Vec::new();
        peer.read_to_end(&mut request).unwrap();
        assert_eq!(request, b"request");
        peer.write_all(&pattern(1 << 20)).unwrap();
    });
    assert!(rig.receive(conn, 1 << 20) == pattern(1 << 20));
    let reason = rig.end_of(conn);
    assert_eq!((reason.kind, reason.unsent_bytes), (CloseKind::PeerClosed, 0));
    server.join().unwrap();
}

pub fn reads_pause_and_resume(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let total = 8 << 20;
    let writer = spawn(move || peer.write_all(&pattern(total)).map(|()| peer).unwrap());
    let (expected, mut got) = (pattern(total), 0);
    for round in 0.. {
        assert!(round < 1000, "no progress");
        rig.engine.pause_reads(conn).unwrap();
        let silent = rig.watch(Duration::from_millis(3));
        assert!(silent.is_empty(), "{silent:?} while paused");
        rig.engine.resume_reads(conn).unwrap();
        let goal = (got + 256 * 1024).min(total);
        rig.run("data", |_, completion| {
            let between_polls = completion.is_none();
            if let Some(Completion { event: Event::Received(data), .. }) = completion {
                assert!(data[..] == expected[got..got + data.len()]);
                got += data.len();
            }
            between_polls && got >= goal
        });
        if got == total {
            break;
        }
    }
    writer.join().unwrap();
}

pub fn pause_holds_the_end_back(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.pause_reads(conn).unwrap();
    peer.write_all(b"kept").unwrap();
    drop(peer);
    // Neither data nor its end: only that the peer has gone.
    let told = rig.watch(Duration::from_millis(30));
    assert!(matches!(&told[..], [Completion { event: Event::HungUp, .. }]), "{told:?}");
    rig.engine.resume_reads(conn).unwrap();
    assert_eq!(rig.receive(conn, 4), b"kept");
    rig.until("the end of the stream", |_, completion| {
        matches!(completion.event, Event::ReadClosed).then_some(())
    });
    // A connection that starts paused reads nothing at all.
    let mut options = ConnectOptions::default();
    options.socket.read_mode = ReadMode::Paused;
    let (conn, mut peer) = rig.pair_with(options);
    peer.write_all(b"later").unwrap();
    assert!(rig.watch(Duration::from_millis(20)).is_empty());
    rig.engine.resume_reads(conn).unwrap();
    assert_eq!(rig.receive(conn, 5), b"later");
}

/// A paused connection learns that its peer has gone, once, and loses nothing of what it sent
/// before.
pub fn paused_connections_tell_hangups(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let hung_up = |_: &mut Engine, completion: Completion| {
        matches!(completion.event, Event::HungUp).then_some(())
    };
    for (resets, starts_paused) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut options = ConnectOptions::default();
        if starts_paused {
            options.socket.read_mode = ReadMode::Paused;
        }
        let (conn, mut peer) = rig.pair_with(options);
        rig.engine.pause_reads(conn).unwrap();
        assert!(rig.watch(Duration::from_millis(20)).is_empty(), "the peer is there");
        peer.write_all(b"before").unwrap();
        assert!(rig.watch(Duration::from_millis(20)).is_empty(), "data is no hang-up");
        if resets {
            peer.reset_on_drop();
        }
        drop(peer);
        rig.until("the hang-up", hung_up);
        assert!(rig.watch(Duration::from_millis(20)).is_empty(), "once, and nothing else");
        rig.engine.resume_reads(conn).unwrap();
        assert_eq!(rig.receive(conn, 6), b"before");
        if resets {
            assert_eq!(rig.end_of(conn).kind, CloseKind::Reset);
        } else {
            rig.until("the end of the stream", |_, c| {
                matches!(c.event, Event::ReadClosed).then_some(())
            });
            rig.engine.close(conn).unwrap();
            assert_eq!(rig.end_of(conn).kind, CloseKind::PeerClosed);
        }
    }
    // Whoever reads hears of the end by reading; a watch that an earlier pause left behind tells
    // nothing.
    let (conn, peer) = rig.pair();
    for _ in 0..3 {
        rig.engine.pause_reads(conn).unwrap();
        assert!(rig.watch(Duration::from_millis(10)).is_empty());
        rig.engine.resume_reads(conn).unwrap();
        assert!(rig.watch(Duration::from_millis(10)).is_empty());
    }
    drop(peer);
    rig.until("the end of the stream", |_, completion| match completion.event {
        Event::HungUp => panic!("a hang-up of a connection that reads"),
        event => matches!(event, Event::ReadClosed).then_some(()),
    });
    // An end that was there before the pause is told too.
    rig.engine.pause_reads(conn).unwrap();
    rig.until("the hang-up", hung_up);
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.end_of(conn).kind, CloseKind::PeerClosed);
}

/// Waits for a filled buffer, collecting what is streamed before and after.
fn filled(rig: &mut Rig, conn: ConnId, stream: &mut Vec<u8>) -> BytesMut {
    let mut buffer = None;
    rig.run("a filled buffer", |_, completion| {
        match completion {
            Some(Completion { conn: from, event: Event::Received(data), .. }) if from == conn => {
                stream.extend_from_slice(&data)
            }
            Some(Completion { conn: from, event: Event::Filled(filled), .. }) if from == conn => {
                buffer = Some(filled)
            }
            _ => {}
        }
        buffer.is_some()
    });
    buffer.expect("just seen")
}

pub fn recv_into_takes_over(variant: &Variant) {
    // Head from the stream, body into a buffer, tail from the stream again: nothing lost at the
    // seams.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let bytes = pattern(24 << 20);
    let (copy, body_len) = (bytes.clone(), 3 << 20);
    let writer = spawn(move || {
        peer.write_all(&copy[..1000]).unwrap();
        peer.write_all(&copy[1000..]).map(|()| peer).unwrap()
    });
    let mut stream = rig.receive(conn, 1000);
    // What has been delivered with it belongs to the stream.
    stream.extend_from_slice(&rig.rest_of_batch(conn));
    let head = stream.len();
    rig.engine.recv_into(conn, BytesMut::from(&b">"[..]), body_len).unwrap();
    assert!(
        matches!(rig.engine.recv_into(conn, BytesMut::new(), 1), Err(Error::State(_))),
        "one at a time"
    );
    let buffer = filled(&mut rig, conn, &mut stream);
    assert_eq!((buffer[0], buffer.len()), (b'>', body_len + 1));
    assert!(buffer[1..] == bytes[head..head + body_len]);
    let tail = bytes.len() - head - body_len;
    let seen = stream.len() - head;
    let rest = if seen < tail { rig.receive(conn, tail - seen) } else { Vec::new() };
    stream.extend_from_slice(&rest);
    assert!(stream[head..] == bytes[head + body_len..]);
    writer.join().unwrap();
}

pub fn recv_into_short(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.recv_into(conn, BytesMut::with_capacity(10), 1000).unwrap();
    peer.write_all(b"only this").unwrap();
    drop(peer);
    let buffer = rig.until("the buffer", |_, completion| match completion.event {
        Event::Filled(buffer) => Some(buffer),
        Event::ReadClosed => panic!("the buffer comes before the end of the stream"),
        _ => None,
    });
    assert_eq!(&buffer[..], b"only this");
    rig.engine.close(conn).unwrap();
    rig.end_of(conn);
    // Aborted in the middle, the buffer still comes back before the end.
    let (conn, _peer) = rig.pair();
    rig.engine.recv_into(conn, BytesMut::new(), 10).unwrap();
    rig.poll(Duration::from_millis(5));
    rig.engine.abort(conn).unwrap();
    let mut order = Vec::new();
    rig.run("buffer and end", |_, completion| {
        match completion.map(|completion| completion.event) {
            Some(Event::Filled(buffer)) => order.push(buffer.len()),
            Some(Event::Closed(_)) => order.push(usize::MAX),
            _ => {}
        }
        order.len() == 2
    });
    assert_eq!(order, [0, usize::MAX]);
}

pub fn recv_into_while_paused(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let mut options = ConnectOptions::default();
    options.socket.read_mode = ReadMode::Paused;
    let (conn, mut peer) = rig.pair_with(options);
    let bytes = pattern(300_000);
    let copy = bytes.clone();
    let writer = spawn(move || peer.write_all(&copy).map(|()| peer).unwrap());
    let mut seen = Vec::new();
    while seen.len() < bytes.len() {
        rig.engine.recv_into(conn, BytesMut::new(), 50_000).unwrap();
        let mut stream = Vec::new();
        seen.extend_from_slice(&filled(&mut rig, conn, &mut stream));
        assert!(stream.is_empty(), "paused: nothing by stream");
    }
    assert!(seen == bytes);
    writer.join().unwrap();
}

pub fn watermarks_bound_memory(variant: &Variant) {
    let (high, low, piece) = (256 << 10, 64 << 10, 16 << 10);
    let mut rig = Rig::with(variant.config().send_watermarks(high, low));
    let (conn, mut peer) = rig.pair();
    let mut sent = 0usize;
    // A peer that never reads: the queue fills, and the payload that is too much comes back whole.
    let deadline = now() + patience();
    let mut quiet = 0;
    while quiet < 20 {
        assert!(now() < deadline, "never full");
        match rig.engine.send(conn, vec![(sent / piece) as u8; piece]) {
            Ok(()) => (sent, quiet) = (sent + piece, 0),
            Err(SendError::Full(back)) => {
                assert_eq!(back.as_slice(), vec![(sent / piece) as u8; piece]);
                quiet += 1;
                for completion in rig.poll(Duration::from_millis(5)) {
                    assert!(matches!(completion.event, Event::Drained), "{:?}", completion.event);
                }
                // The kernel may still take some, a little at a time on a slow network.
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
    // It starts to read: one Drained, below the low watermark, and nothing was lost.
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
    // On loopback a notification comes only when the peer has read: the payloads must live until
    // then.
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
    assert_eq!(rig.end_of(conn).unsent_bytes, 0);
    let expected: Vec<u8> =
        bytes.chunks(50_000).flat_map(|chunk| [chunk, b"small"].concat()).collect();
    assert!(reader.join().unwrap() == expected);
    let zero_copy = rig.engine.stats().zero_copy_sends;
    assert_eq!(zero_copy > 0, rig.uses(Capability::SendZc), "{zero_copy} zero-copy sends");
}

pub fn proxy_by_lease(variant: &Variant) {
    // From one connection to another without a copy, through a slow reader.
    let mut rig = Rig::new(variant);
    let (from, mut source) = rig.pair();
    let (to, mut sink) = rig.pair();
    let total = 12 << 20;
    let writer = spawn(move || source.write_all(&pattern(total)).unwrap());
    let reader = spawn(move || {
        let mut seen = Vec::new();
        let mut piece = vec![0; 60_000];
        loop {
            match sink.read(&mut piece).unwrap() {
                0 => return seen,
                len => seen.extend_from_slice(&piece[..len]),
            }
            if seen.len() % 7 == 0 {
                sleep(Duration::from_millis(1));
            }
        }
    });
    let (mut waiting, mut ended) = (None::<Payload>, false);
    rig.run("the transfer", |engine, completion| {
        match completion {
            Some(Completion { conn, event: Event::Received(data), .. }) if conn == from => {
                // After a pause the rest of a batch may still come: it goes behind what waits.
                match waiting.take() {
                    Some(before) => waiting = Some([before.as_slice(), &data].concat().into()),
                    None => {
                        if let Err(error) = engine.send(to, data) {
                            waiting = Some(error.into_payload());
                            engine.pause_reads(from).unwrap();
                        }
                    }
                }
            }
            Some(Completion { conn, event: Event::Drained, .. }) if conn == to => {
                // A Drained from before the queue was filled again is no promise.
                match waiting.take().map(|payload| engine.send(to, payload)) {
                    Some(Err(error)) => waiting = Some(error.into_payload()),
                    Some(Ok(())) => drop(engine.resume_reads(from)),
                    None => {}
                }
            }
            Some(Completion { conn, event: Event::ReadClosed, .. }) if conn == from => {
                engine.close(from).unwrap();
                ended = true;
            }
            _ => {}
        }
        if ended && waiting.is_none() && engine.is_live(to) {
            engine.close(to).unwrap();
        }
        engine.connections() == 0
    });
    writer.join().unwrap();
    assert!(reader.join().unwrap() == pattern(total));
}

pub fn tags_and_addresses(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.set_tag(conn, 99).unwrap();
    assert_eq!(rig.engine.tag(conn).unwrap(), 99);
    assert_eq!(rig.engine.peer_addr(conn).unwrap(), Addr::Inet(peer.local_addr().unwrap()));
    assert_eq!(rig.engine.local_addr(conn).unwrap(), Addr::Inet(peer.peer_addr().unwrap()));
    assert_eq!(rig.engine.fd(conn).is_some(), variant.simulated().is_none());
    assert!(rig.engine.is_live(conn));
    peer.write_all(b"x").unwrap();
    let tag = rig.until("data", |_, completion| Some(completion.tag));
    assert_eq!(tag, 99);
}

pub fn two_messages_in_one_read(variant: &Variant) {
    // A hundred pipelined requests in one packet: all of them come out, without further input.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let requests = "GET /\n".repeat(100);
    peer.write_all(requests.as_bytes()).unwrap();
    let bytes = rig.receive(conn, requests.len());
    assert_eq!(bytes, requests.as_bytes());
}

/// A poll that is to end after one byte tells no more than it must, and nothing is lost between two
/// of them.
pub fn turns_end_after_their_bytes(variant: &Variant) {
    let mut rig =
        Rig::with(variant.config().tuning(Tuning::default().turn_bytes(1)).buffers(64, 4096));
    let pairs: Vec<_> = (0..4).map(|_| rig.pair()).collect();
    let sent = pattern(20_000);
    for (_, peer) in &pairs {
        peer.try_clone().unwrap().write_all(&sent).unwrap();
    }
    let one_each = rig.engine.info().backend == Backend::Epoll;
    let mut received: Vec<Vec<u8>> = vec![Vec::new(); pairs.len()];
    let deadline = now() + patience();
    while received.iter().any(|received| received.len() < sent.len()) {
        assert!(now() < deadline, "not all of it came");
        let told = rig.poll(Duration::from_millis(100));
        let mut pieces = 0;
        for completion in told {
            let index =
                pairs.iter().position(|(conn, _)| *conn == completion.conn).expect("one of ours");
            if let Event::Received(data) = completion.event {
                received[index].extend_from_slice(&data);
                pieces += 1;
            }
        }
        assert!(!one_each || pieces <= 1, "{pieces} receives in a turn of one byte");
    }
    assert!(received.iter().all(|received| *received == sent), "other bytes arrived");
}
