//! Receives: pauses, what a paused connection reports, buffers of the caller, the limit of a turn.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use bytes::BytesMut;
use proactor::*;
use std::io::Write;
use std::time::Duration;

pub fn reads_pause_and_resume(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let total = 8 << 20;
    let writer = spawn(move || peer.write_all(&pattern(total)).map(|()| peer).unwrap());
    let (expected, mut got) = (pattern(total), 0);
    for round in 0.. {
        assert!(round < 1000, "no progress");
        rig.engine.pause_reads(conn).unwrap();
        let silent = rig.poll_for(Duration::from_millis(3));
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
    // Neither data nor the end of the stream: only the hang-up.
    let events = rig.poll_for(Duration::from_millis(30));
    assert!(matches!(&events[..], [Completion { event: Event::HungUp, .. }]), "{events:?}");
    rig.engine.resume_reads(conn).unwrap();
    assert_eq!(rig.receive(conn, 4), b"kept");
    rig.until("the end of the stream", |_, completion| {
        matches!(completion.event, Event::ReadClosed).then_some(())
    });
    // A connection that starts paused reads nothing.
    let mut options = ConnectOptions::default();
    options.socket.read_mode = ReadMode::Paused;
    let (conn, mut peer) = rig.pair_with(options);
    peer.write_all(b"later").unwrap();
    assert!(rig.poll_for(Duration::from_millis(20)).is_empty());
    rig.engine.resume_reads(conn).unwrap();
    assert_eq!(rig.receive(conn, 5), b"later");
}

/// A paused connection reports once that its peer has hung up, and loses nothing that the peer sent
/// before.
pub fn paused_connections_report_hangups(variant: &Variant) {
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
        assert!(rig.poll_for(Duration::from_millis(20)).is_empty(), "the peer is open");
        peer.write_all(b"before").unwrap();
        assert!(rig.poll_for(Duration::from_millis(20)).is_empty(), "data is no hang-up");
        if resets {
            peer.reset_on_drop();
        }
        drop(peer);
        rig.until("the hang-up", hung_up);
        assert!(rig.poll_for(Duration::from_millis(20)).is_empty(), "once, and nothing else");
        rig.engine.resume_reads(conn).unwrap();
        assert_eq!(rig.receive(conn, 6), b"before");
        if resets {
            assert_eq!(rig.wait_closed(conn).kind, CloseKind::Reset);
        } else {
            rig.until("the end of the stream", |_, c| {
                matches!(c.event, Event::ReadClosed).then_some(())
            });
            rig.engine.close(conn).unwrap();
            assert_eq!(rig.wait_closed(conn).kind, CloseKind::PeerClosed);
        }
    }
    // A connection that reads reports `ReadClosed` and no hang-up, even if the watch of an earlier
    // pause is still armed.
    let (conn, peer) = rig.pair();
    for _ in 0..3 {
        rig.engine.pause_reads(conn).unwrap();
        assert!(rig.poll_for(Duration::from_millis(10)).is_empty());
        rig.engine.resume_reads(conn).unwrap();
        assert!(rig.poll_for(Duration::from_millis(10)).is_empty());
    }
    drop(peer);
    rig.until("the end of the stream", |_, completion| match completion.event {
        Event::HungUp => panic!("a hang-up of a connection that reads"),
        event => matches!(event, Event::ReadClosed).then_some(()),
    });
    // A hang-up from before the pause is reported too.
    rig.engine.pause_reads(conn).unwrap();
    rig.until("the hang-up", hung_up);
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::PeerClosed);
}

/// Waits for `Filled`. Appends what is received before and after to `stream`.
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
    buffer.expect("the loop ends with a buffer")
}

pub fn recv_into_takes_over(variant: &Variant) {
    // Head by `Received`, body into a buffer, tail by `Received` again. Nothing is lost between
    // them.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let bytes = pattern(24 << 20);
    let (copy, body_len) = (bytes.clone(), 3 << 20);
    let writer = spawn(move || {
        peer.write_all(&copy[..1000]).unwrap();
        peer.write_all(&copy[1000..]).map(|()| peer).unwrap()
    });
    let mut stream = rig.receive(conn, 1000);
    // The same poll may have delivered more.
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
    rig.wait_closed(conn);
    // After an abort the buffer comes back before `Closed`.
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
        assert!(stream.is_empty(), "`Received` while paused");
    }
    assert!(seen == bytes);
    writer.join().unwrap();
}

pub fn pipelined_requests_in_one_read(variant: &Variant) {
    // A hundred pipelined requests in one write: all are delivered, without further input.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let requests = "GET /\n".repeat(100);
    peer.write_all(requests.as_bytes()).unwrap();
    let bytes = rig.receive(conn, requests.len());
    assert_eq!(bytes, requests.as_bytes());
}

/// With a limit of one byte, a turn on epoll ends after one receive. Nothing is lost between turns.
pub fn turn_bytes_limit_a_turn(variant: &Variant) {
    let mut rig =
        Rig::with(variant.config().tuning(Tuning::default().turn_bytes(1)).buffers(64, 4096));
    let pairs: Vec<_> = (0..4).map(|_| rig.pair()).collect();
    let sent = pattern(20_000);
    for (_, peer) in &pairs {
        peer.try_clone().unwrap().write_all(&sent).unwrap();
    }
    let one_receive = rig.engine.info().backend == Backend::Epoll;
    let mut received: Vec<Vec<u8>> = vec![Vec::new(); pairs.len()];
    let deadline = now() + patience();
    while received.iter().any(|received| received.len() < sent.len()) {
        assert!(now() < deadline, "some bytes never came");
        let mut receives = 0;
        for completion in rig.poll(Duration::from_millis(100)) {
            let index = pairs
                .iter()
                .position(|(conn, _)| *conn == completion.conn)
                .expect("a known connection");
            if let Event::Received(data) = completion.event {
                received[index].extend_from_slice(&data);
                receives += 1;
            }
        }
        assert!(!one_receive || receives <= 1, "{receives} receives in a turn of one byte");
    }
    assert!(received.iter().all(|received| *received == sent), "wrong bytes arrived");
}
