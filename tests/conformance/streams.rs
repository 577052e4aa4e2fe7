//! Bytes in both directions: order, completeness, half-close.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use proactor::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

/// Runs a blocking client against an echo server on the engine.
fn with_echo_server(rig: &mut Rig, client: impl FnOnce(Peer) + Send + 'static) {
    let (_, addr) = rig.listen();
    let client = spawn(move || {
        let stream = connect(addr).unwrap();
        client(stream);
    });
    let mut refused: Vec<(ConnId, Payload)> = Vec::new();
    rig.run("the client", |engine, completion| {
        refused = std::mem::take(&mut refused)
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
                    refused.push((conn, error.into_payload()));
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
    with_echo_server(&mut Rig::new(variant), |mut stream| {
        for byte in pattern(300) {
            stream.write_all(&[byte]).unwrap();
            let mut back = [0];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, [byte]);
        }
    });
}

pub fn echo_64_mib(variant: &Variant) {
    // One payload of 64 MiB, far more than the high watermark, to a peer that echoes after it has
    // received everything.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let bytes = pattern(64 << 20);
    let expected = bytes.clone();
    let reader = spawn(move || {
        let mut seen = vec![0; expected.len()];
        peer.read_exact(&mut seen).unwrap();
        assert!(seen == expected, "64 MiB arrived changed");
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

pub fn peer_half_closes_first(variant: &Variant) {
    // After the peer's FIN the connection can still send.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"last bytes").unwrap();
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
    assert_eq!(data, b"last bytes.");
    assert!(
        rig.poll_for(Duration::from_millis(20)).is_empty(),
        "one ReadClosed, and the connection stays open"
    );
    let response = pattern(3 << 20);
    rig.engine.send(conn, response.clone()).unwrap();
    let reader = spawn(move || read_all(peer));
    rig.run("the response", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::PeerClosed);
    assert!(reader.join().unwrap() == response);
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
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.unsent_bytes), (CloseKind::PeerClosed, 0));
    server.join().unwrap();
}

pub fn proxy_by_lease(variant: &Variant) {
    // A proxy sends received leases to a slow reader without a copy.
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
    let (mut refused, mut ended) = (None::<Payload>, false);
    rig.run("the transfer", |engine, completion| {
        match completion {
            Some(Completion { conn, event: Event::Received(data), .. }) if conn == from => {
                // Data that was received before the pause may still come: it follows the refused
                // payload.
                match refused.take() {
                    Some(before) => refused = Some([before.as_slice(), &data].concat().into()),
                    None => {
                        if let Err(error) = engine.send(to, data) {
                            refused = Some(error.into_payload());
                            engine.pause_reads(from).unwrap();
                        }
                    }
                }
            }
            Some(Completion { conn, event: Event::Drained, .. }) if conn == to => {
                // The queue may be full again since this `Drained`.
                match refused.take().map(|payload| engine.send(to, payload)) {
                    Some(Err(error)) => refused = Some(error.into_payload()),
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
        if ended && refused.is_none() && engine.is_live(to) {
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
