//! Ends of connections: each kind with its reason. No bytes are lost and each end comes once.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use proactor::*;
use std::io::{Read, Write};
use std::time::Duration;

pub fn close_flushes_everything(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, peer) = rig.pair();
    let bytes = pattern(10 << 20);
    rig.engine.send(conn, bytes.clone()).unwrap();
    rig.engine.close(conn).unwrap();
    rig.engine.close(conn).unwrap();
    assert!(matches!(rig.engine.send(conn, "late"), Err(SendError::Closed(_))));
    let reader = spawn(move || {
        sleep(Duration::from_millis(30));
        read_all(peer)
    });
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.unsent_bytes), (CloseKind::Local, 0));
    assert!(reader.join().unwrap() == bytes);
    assert!(matches!(rig.engine.close(conn), Err(Error::Stale)));
}

pub fn close_with_unread_input_loses_nothing(variant: &Variant) {
    // The peer keeps sending while the engine responds and closes. A plain close(2) would reset the
    // connection and cut the response short.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let response = pattern(2 << 20);
    rig.engine.pause_reads(conn).unwrap();
    peer.write_all(&[b'?'; 30_000]).unwrap();
    rig.engine.send(conn, response.clone()).unwrap();
    rig.engine.close(conn).unwrap();
    let client = spawn(move || {
        let mut seen = Vec::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            match peer.read(&mut piece).unwrap() {
                0 => return seen,
                len => seen.extend_from_slice(&piece[..len]),
            }
            if seen.len() < 1 << 20 {
                peer.write_all(b"more input").unwrap();
            }
        }
    });
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.unsent_bytes), (CloseKind::Local, 0));
    assert!(client.join().unwrap() == response);
}

pub fn close_gives_up_at_the_linger_deadline(variant: &Variant) {
    let mut rig = Rig::with(variant.config().linger(Duration::from_millis(100)));
    let (conn, mut peer) = rig.pair();
    let len = 40 << 20;
    rig.engine.send(conn, vec![0; len]).unwrap();
    rig.poll(Duration::from_millis(10));
    let start = now();
    rig.engine.close(conn).unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!(reason.kind, CloseKind::LingerTimedOut);
    assert!(since(start) >= Duration::from_millis(100));
    assert!(reason.unsent_bytes > 0 && reason.unsent_bytes < len as u64, "{reason}");
    let mut sink = Vec::new();
    assert!(peer.read_to_end(&mut sink).is_err(), "a stream cut short must not look complete");
}

pub fn abort_resets(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.send(conn, vec![0; 20 << 20]).unwrap();
    rig.poll(Duration::from_millis(5));
    rig.engine.abort(conn).unwrap();
    rig.engine.abort(conn).unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!(reason.kind, CloseKind::Aborted);
    assert!(reason.unsent_bytes > 0);
    let error = peer.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

pub fn peer_resets_while_we_send(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, peer) = rig.pair();
    rig.engine.send(conn, vec![0; 30 << 20]).unwrap();
    rig.poll(Duration::from_millis(20));
    peer.reset_on_drop();
    drop(peer);
    let reason = rig.wait_closed(conn);
    assert_eq!(reason.kind, CloseKind::Reset);
    assert!(reason.unsent_bytes > 0, "{reason}");
    // Sends to a peer that has closed.
    let (conn, peer) = rig.pair();
    drop(peer);
    rig.until("the peer's FIN", |_, completion| {
        matches!(completion.event, Event::ReadClosed).then_some(())
    });
    let deadline = now() + patience();
    while rig.engine.send(conn, "more").is_ok() {
        assert!(now() < deadline);
        rig.poll(Duration::from_millis(5));
    }
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::Reset);
}

pub fn peer_resets_after_data(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"before the end").unwrap();
    sleep(Duration::from_millis(20));
    peer.reset_on_drop();
    drop(peer);
    let mut data = Vec::new();
    rig.run("the reset", |engine, completion| {
        if let Some(Completion { event: Event::Received(lease), .. }) = completion {
            data.extend_from_slice(&lease);
        }
        !engine.is_live(conn)
    });
    assert_eq!(rig.ended[&conn].kind, CloseKind::Reset);
    assert_eq!(data, b"before the end", "data from before the reset is delivered first");
}

pub fn idle_timeout(variant: &Variant) {
    let mut rig = Rig::with(variant.config().idle_timeout(Some(Duration::from_millis(80))));
    let start = now();
    let (conn, mut peer) = rig.pair();
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::IdleTimedOut);
    assert!(since(start) >= Duration::from_millis(80));
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    // Accepted connections too, with the timeout of the listener.
    let mut options = ListenOptions::default();
    options.socket.idle_timeout = Some(Duration::from_millis(30));
    let (_, addr) = rig.listen_with(options);
    let mut client = connect(addr).unwrap();
    let conn = rig.until("accept", |_, completion| Some(completion.conn));
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::IdleTimedOut);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

pub fn idle_timeout_is_put_off_by_traffic(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let mut options = ConnectOptions::default();
    options.socket.idle_timeout = Some(Duration::from_millis(800));
    let (conn, mut peer) = rig.pair_with(options);
    let start = now();
    while since(start) < Duration::from_millis(1500) {
        peer.write_all(b".").unwrap();
        rig.receive(conn, 1);
        sleep(Duration::from_millis(50));
    }
    assert!(rig.engine.is_live(conn));
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::IdleTimedOut);
}

pub fn stale_ids_are_errors(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (old, _peer) = rig.pair();
    rig.engine.abort(old).unwrap();
    rig.wait_closed(old);
    let (new, mut peer) = rig.pair();
    assert_eq!(new.slot(), old.slot());
    assert_ne!(new, old);
    for id in [old, ConnId::NONE] {
        assert!(matches!(rig.engine.send(id, "x"), Err(SendError::Stale(_))));
        assert_eq!(rig.engine.write(id, b"x"), Err(WriteError::Stale));
        assert!(matches!(rig.engine.close(id), Err(Error::Stale)));
        assert!(matches!(rig.engine.abort(id), Err(Error::Stale)));
        assert!(matches!(rig.engine.shutdown_write(id), Err(Error::Stale)));
        assert!(matches!(rig.engine.pause_reads(id), Err(Error::Stale)));
        assert!(matches!(rig.engine.resume_reads(id), Err(Error::Stale)));
        assert!(matches!(rig.engine.recv_into(id, Default::default(), 1), Err(Error::Stale)));
        assert!(matches!(rig.engine.set_tag(id, 1), Err(Error::Stale)));
        assert!(matches!(rig.engine.peer_addr(id), Err(Error::Stale)));
        assert!(matches!(rig.engine.release(id), Err(Error::Stale)));
        assert!(rig.engine.fd(id).is_none() && !rig.engine.is_live(id));
    }
    assert!(matches!(rig.engine.close_listener(ListenerId::NONE), Err(Error::Stale)));
    assert!(!rig.engine.timer_cancel(TimerId::NONE));
    peer.write_all(b"fine").unwrap();
    assert_eq!(rig.receive(new, 4), b"fine");
}

pub fn races_of_close_abort_and_data(variant: &Variant) {
    // Both ends in one engine, closed and aborted at every stage with data in flight. The rig
    // checks that each connection ends once and that no event follows.
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    let mut opened = 0;
    for round in 0..300u32 {
        let conn = rig.engine.connect(addr, ConnectOptions::default()).unwrap();
        opened += 1;
        let _ = rig.engine.send(conn, vec![1; (round as usize % 7) * 50_000]);
        for step in 0..round % 5 {
            let timeout = Duration::from_micros(u64::from(step * 37 % 100));
            for completion in rig.poll(timeout) {
                let other = completion.conn;
                match completion.event {
                    Event::Received(data) => drop(rig.engine.send(other, data)),
                    Event::Accepted { .. } if round % 4 == 0 => rig.engine.abort(other).unwrap(),
                    Event::Accepted { .. } if round % 4 == 1 => {
                        rig.engine.pause_reads(other).unwrap()
                    }
                    Event::ReadClosed => rig.engine.close(other).unwrap(),
                    _ => {}
                }
            }
        }
        let _ = match round % 6 {
            0 => rig.engine.close(conn),
            1 => rig.engine.abort(conn),
            2 => rig.engine.close(conn).and_then(|()| rig.engine.abort(conn)),
            3 => rig.engine.shutdown_write(conn).and_then(|()| rig.engine.pause_reads(conn)),
            4 => rig
                .engine
                .recv_into(conn, Default::default(), 100)
                .and_then(|()| rig.engine.close(conn)),
            _ => Ok(()),
        };
    }
    rig.engine.close_all(Duration::from_millis(500));
    rig.run("the end of all", |engine, _| engine.is_closed());
    let ended = rig.ended.len();
    assert!(ended >= opened, "{opened} opened, {ended} ended");
    assert_eq!(rig.engine.stats().unknown_completions, 0);
}

pub fn close_all_closes_everything(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (listener, addr) = rig.listen();
    let clients: Vec<Peer> = (0..20).map(|_| connect(addr).unwrap()).collect();
    let mut conns = Vec::new();
    rig.run("accepts", |_, completion| {
        conns.extend(completion.map(|completion| completion.conn));
        conns.len() == 20
    });
    for conn in &conns {
        rig.engine.send(*conn, pattern(200_000)).unwrap();
    }
    let readers: Vec<_> =
        clients.into_iter().map(|client| spawn(move || read_all(client))).collect();
    rig.engine.close_all(Duration::from_secs(30));
    assert!(matches!(rig.engine.connect(addr, ConnectOptions::default()), Err(Error::Closing)));
    assert!(matches!(rig.engine.listen(addr, ListenOptions::default()), Err(Error::Closing)));
    let mut listener_closed = 0;
    rig.run("the end of all", |engine, completion| {
        if let Some(Completion { event: Event::ListenerClosed { listener: id, errno }, .. }) =
            completion
        {
            assert_eq!((id, errno), (listener, None));
            listener_closed += 1;
        }
        engine.is_closed()
    });
    assert_eq!(listener_closed, 1);
    readers.into_iter().for_each(|reader| assert!(reader.join().unwrap() == pattern(200_000)));
    assert!(conns.iter().all(
        |conn| rig.ended[conn].kind == CloseKind::Shutdown && rig.ended[conn].unsent_bytes == 0
    ));
}

pub fn close_all_gives_up_in_time(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, _peer) = rig.pair();
    rig.engine.send(conn, vec![0; 40 << 20]).unwrap();
    rig.engine.close_all(Duration::from_millis(100));
    let reason = rig.wait_closed(conn);
    assert!(reason.unsent_bytes > 0 && reason.kind == CloseKind::LingerTimedOut, "{reason}");
    rig.run("the end of all", |engine, _| engine.is_closed());
}

pub fn close_with_peer_option(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let mut options = ConnectOptions::default();
    options.socket.half_open = false;
    let (conn, peer) = rig.pair_with(options);
    drop(peer);
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::PeerClosed);
}

pub fn closed_reason_names_the_side(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (ours, peer) = rig.pair();
    rig.engine.close(ours).unwrap();
    let reader = spawn(move || read_all(peer));
    assert_eq!(rig.wait_closed(ours).kind, CloseKind::Local);
    reader.join().unwrap();
    let (theirs, peer) = rig.pair();
    drop(peer);
    rig.until("the peer's FIN", |_, completion| {
        matches!(completion.event, Event::ReadClosed).then_some(())
    });
    rig.engine.close(theirs).unwrap();
    let reason = rig.wait_closed(theirs);
    assert_eq!(reason.kind, CloseKind::PeerClosed);
    assert_eq!(reason.to_string(), "closed by the peer");
}
