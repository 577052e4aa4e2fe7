//! Connects: success on each address family, and each failure.

use crate::Variant;
use crate::peers::*;
use crate::report::skip;
use crate::rig::*;
use crate::sandbox::descriptors_max;
use proactor::*;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

fn options(timeout_ms: u64) -> ConnectOptions {
    ConnectOptions { timeout: Some(Duration::from_millis(timeout_ms)), ..ConnectOptions::default() }
}

/// Client and server in one engine: a request, a response, and an orderly close.
fn round_trip(rig: &mut Rig, addr: Addr) {
    let conn =
        rig.engine.connect(addr, ConnectOptions { tag: 7, ..ConnectOptions::default() }).unwrap();
    rig.engine.send(conn, "request").unwrap();
    let (mut connected, mut response, mut server) = (0, Vec::new(), ConnId::NONE);
    rig.run("a response", |engine, completion| {
        let Some(completion) = completion else { return response == b"request" };
        match completion.event {
            Event::Connected => {
                assert_eq!((completion.conn, completion.tag), (conn, 7));
                connected += 1;
            }
            Event::Accepted { .. } => server = completion.conn,
            Event::Received(data) if completion.conn == conn => response.extend_from_slice(&data),
            _ => serve_echo(engine, completion),
        }
        false
    });
    assert_eq!(connected, 1);
    rig.engine.close(conn).unwrap();
    rig.run("both ends", |engine, completion| {
        if let Some(completion) = completion {
            serve_echo(engine, completion);
        }
        engine.connections() == 0
    });
    assert_eq!(rig.ended[&conn].kind, CloseKind::Local);
    assert_eq!(rig.ended[&server].kind, CloseKind::PeerClosed);
}

fn listen_and_round_trip(variant: &Variant, addr: Addr) {
    let mut rig = Rig::new(variant);
    let listener = rig.engine.listen(addr, ListenOptions::default()).unwrap();
    let addr = rig.engine.listener_addr(listener).unwrap();
    round_trip(&mut rig, addr);
}

pub fn connect_ipv4(variant: &Variant) {
    listen_and_round_trip(variant, "127.0.0.1:0".parse().unwrap());
}

pub fn connect_ipv6(variant: &Variant) {
    if !has_ipv6() {
        return;
    }
    listen_and_round_trip(variant, "[::1]:0".parse().unwrap());
}

pub fn connect_unix_path(variant: &Variant) {
    let path = std::env::temp_dir().join(format!("proactor-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    if variant.simulated().is_none()
        && let Err(error) = std::os::unix::net::UnixListener::bind(&path)
    {
        return skip(format_args!(
            "cannot bind a socket in {}: {error}",
            std::env::temp_dir().display()
        ));
    }
    listen_and_round_trip(variant, Addr::Unix(path.clone()));
    // The file of a closed listener is replaced. That of an open one is not.
    listen_and_round_trip(variant, Addr::Unix(path.clone()));
    let mut rig = Rig::new(variant);
    rig.engine.listen(path.as_path(), ListenOptions::default()).unwrap();
    let error = rig.engine.listen(path.as_path(), ListenOptions::default()).unwrap_err();
    assert_eq!(error.errno(), Some(Errno(libc::EADDRINUSE)));
    let _ = std::fs::remove_file(&path);
}

pub fn connect_unix_abstract(variant: &Variant) {
    listen_and_round_trip(
        variant,
        Addr::UnixAbstract(format!("proactor-{}", std::process::id()).into_bytes()),
    );
}

pub fn connect_refused(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let port = listen_local().unwrap().local_addr().unwrap().port();
    let conn = rig.engine.connect((Ipv4Addr::LOCALHOST, port), ConnectOptions::default()).unwrap();
    rig.engine.send(conn, "never").unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.errno), (CloseKind::Refused, Some(Errno(libc::ECONNREFUSED))));
    assert_eq!(reason.unsent_bytes, 5);
    assert!(matches!(rig.engine.send(conn, "more"), Err(SendError::Stale(_))));
}

pub fn connect_unix_missing(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let conn = rig
        .engine
        .connect(Addr::Unix("/nonexistent/proactor.sock".into()), ConnectOptions::default())
        .unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.errno), (CloseKind::Refused, Some(Errno(libc::ENOENT))));
}

pub fn connect_unreachable(variant: &Variant) {
    let mut rig = Rig::new(variant);
    // The broadcast address of loopback: TCP does not connect to it, and no packet leaves the
    // machine.
    let conn = rig
        .engine
        .connect((Ipv4Addr::new(127, 255, 255, 255), 9), ConnectOptions::default())
        .unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!(
        (reason.kind, reason.errno),
        (CloseKind::Unreachable, Some(Errno(libc::ENETUNREACH)))
    );
}

pub fn connect_hangs_until_its_timeout(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (listener, _fillers) = full_listener(1);
    let start = now();
    let conn = rig.engine.connect(listener.local_addr().unwrap(), options(150)).unwrap();
    rig.engine.send(conn, "lost").unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.unsent_bytes), (CloseKind::ConnectTimedOut, 4));
    assert!(since(start) >= Duration::from_millis(150), "too early");
}

pub fn connect_timeout_leaves_others_alone(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (listener, _fillers) = full_listener(1);
    let timing_out = rig.engine.connect(listener.local_addr().unwrap(), options(50)).unwrap();
    let (conn, mut peer) = rig.pair();
    rig.wait_closed(timing_out);
    // The slot is reused. A late completion of the old connection must not affect the new one.
    let (next, mut next_peer) = rig.pair();
    assert_eq!(next.slot(), timing_out.slot());
    peer.write_all(b"a").unwrap();
    assert_eq!(rig.receive(conn, 1), b"a");
    next_peer.write_all(b"b").unwrap();
    assert_eq!(rig.receive(next, 1), b"b");
}

pub fn sends_wait_behind_the_connect(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let listener = listen_local().unwrap();
    let conn =
        rig.engine.connect(listener.local_addr().unwrap(), ConnectOptions::default()).unwrap();
    rig.engine.send(conn, "one ").unwrap();
    rig.engine.write(conn, b"two ").unwrap();
    rig.engine.send(conn, vec![b'3']).unwrap();
    rig.engine.shutdown_write(conn).unwrap();
    let (mut peer, _) = {
        rig.until("connect", |_, completion| {
            matches!(completion.event, Event::Connected).then_some(())
        });
        listener.accept().unwrap()
    };
    rig.poll(Duration::ZERO);
    let mut text = String::new();
    let reader = spawn(move || {
        peer.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::PeerClosed);
    assert_eq!(reader.join().unwrap(), "one two 3");
}

/// Early sends: on, which is the default, and off.
pub fn requests_leave_with_the_connect(variant: &Variant) {
    let lens = [1, 64, 5000, 300_000, 1_000_000];
    // Both ends are in this process; one environment has 32 descriptors.
    let count = if descriptors_max() < 100 { 6 } else { 20 };
    let lens: Vec<usize> = (0..count).map(|index| lens[index % lens.len()] + index).collect();
    let tuning = Tuning::default().ring_entries(2, 4096);
    let rig = requests_before_the_connect(variant.config().tuning(tuning.clone()), &lens);
    let leave_early = rig.engine.info().backend != Backend::Uring || rig.uses(Capability::SocketOp);
    // Larger payloads use SEND_ZC, which is not sent early.
    let small = lens.iter().filter(|len| **len < 64 << 10).count() as u64;
    assert_eq!(rig.engine.stats().early_sends, if leave_early { small } else { 0 });
    drop(rig);
    let tuning = tuning.early_sends(false).adaptive_receives(false);
    let rig = requests_before_the_connect(variant.config().tuning(tuning), &lens);
    let stats = rig.engine.stats();
    assert_eq!((stats.early_sends, stats.late_receives, stats.single_receives), (0, 0, 0));
}

/// Queues one payload on each connection before the connect starts: small ones, and some that are
/// larger than a socket buffer. The peers send first.
fn requests_before_the_connect(config: Config, all: &[usize]) -> Rig {
    let mut rig = Rig::with(config);
    let listener = listen_local().unwrap();
    let addr = listener.local_addr().unwrap();
    let accepted = all.len();
    let server = spawn(move || {
        let greet = |_| {
            let mut peer = listener.accept().unwrap().0;
            peer.write_all(b"hello").unwrap();
            spawn(move || read_all(peer))
        };
        let readers: Vec<_> = (0..accepted).map(greet).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    for (index, len) in all.iter().enumerate() {
        let conn = rig
            .engine
            .connect(addr, ConnectOptions { tag: index as u64, ..ConnectOptions::default() })
            .unwrap();
        rig.engine.send_tagged(conn, pattern(*len), 1000 + index as u64).unwrap();
        rig.engine.shutdown_write(conn).unwrap();
    }
    let mut events: Vec<String> = vec![String::new(); all.len()];
    let mut greeting: Vec<Vec<u8>> = vec![Vec::new(); all.len()];
    rig.run("all of them", |engine, completion| {
        let Some(completion) = completion else { return engine.connections() == 0 };
        let index = completion.tag as usize;
        match completion.event {
            Event::Connected => events[index] += "connected ",
            Event::Sent { tag } => events[index] += &format!("sent {} ", tag - completion.tag),
            Event::Received(data) => greeting[index].extend_from_slice(&data),
            Event::Closed(reason) => {
                events[index] += &format!("closed {:?} {}", reason.kind, reason.unsent_bytes)
            }
            _ => {}
        }
        false
    });
    assert!(
        events.iter().all(|events| events == "connected sent 1000 closed PeerClosed 0"),
        "{events:?}"
    );
    assert!(greeting.iter().all(|greeting| greeting == b"hello"), "{greeting:?}");
    let mut received = server.join().unwrap();
    received.sort_by_key(Vec::len);
    let mut all = all.to_vec();
    all.sort_unstable();
    assert!(
        received.iter().map(Vec::len).eq(all.iter().copied()),
        "a wrong number of bytes arrived"
    );
    all.iter()
        .zip(&received)
        .for_each(|(len, bytes)| assert!(*bytes == pattern(*len), "wrong bytes arrived"));
    rig
}

pub fn close_while_connecting_flushes(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let listener = listen_local().unwrap();
    let conn =
        rig.engine.connect(listener.local_addr().unwrap(), ConnectOptions::default()).unwrap();
    rig.engine.send(conn, "farewell").unwrap();
    rig.engine.close(conn).unwrap();
    assert!(matches!(rig.engine.send(conn, "late"), Err(SendError::Closed(_))));
    let reader = spawn(move || read_all(listener.accept().unwrap().0));
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.unsent_bytes), (CloseKind::Local, 0));
    assert_eq!(reader.join().unwrap(), b"farewell");
    // Without a queued payload, `close` does not wait for the connect.
    let (full, _fillers) = full_listener(1);
    let conn = rig.engine.connect(full.local_addr().unwrap(), ConnectOptions::default()).unwrap();
    rig.poll(Duration::ZERO);
    rig.engine.close(conn).unwrap();
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::Local);
}

pub fn abort_while_connecting(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (listener, _fillers) = full_listener(1);
    let staged =
        rig.engine.connect(listener.local_addr().unwrap(), ConnectOptions::default()).unwrap();
    rig.engine.abort(staged).unwrap();
    assert_eq!(rig.wait_closed(staged).kind, CloseKind::Aborted);
    let started =
        rig.engine.connect(listener.local_addr().unwrap(), ConnectOptions::default()).unwrap();
    rig.engine.send(started, "lost").unwrap();
    rig.poll(Duration::from_millis(10));
    rig.engine.abort(started).unwrap();
    let reason = rig.wait_closed(started);
    assert_eq!((reason.kind, reason.unsent_bytes), (CloseKind::Aborted, 4));
}

pub fn local_address(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let local = "127.0.0.5:0".parse().unwrap();
    let (conn, peer) =
        rig.pair_with(ConnectOptions { local: Some(local), ..ConnectOptions::default() });
    assert_eq!(peer.peer_addr().unwrap().ip().to_string(), "127.0.0.5");
    assert_eq!(rig.engine.local_addr(conn).unwrap(), Addr::Inet(peer.peer_addr().unwrap()));
    // An address that this machine does not have.
    let local = Some("192.0.2.1:0".parse().unwrap());
    let conn = rig
        .engine
        .connect((Ipv4Addr::LOCALHOST, 9), ConnectOptions { local, ..ConnectOptions::default() })
        .unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!(
        (reason.kind, reason.errno),
        (CloseKind::ConnectFailed, Some(Errno(libc::EADDRNOTAVAIL)))
    );
}

pub fn impossible_addresses(variant: &Variant) {
    let mut rig = Rig::new(variant);
    for addr in [Addr::Unix("".into()), Addr::Unix("p".repeat(300).into()), Addr::UnixUnnamed] {
        assert!(matches!(
            rig.engine.connect(addr.clone(), ConnectOptions::default()),
            Err(Error::Address { .. })
        ));
        assert!(matches!(
            rig.engine.listen(addr, ListenOptions::default()),
            Err(Error::Address { .. })
        ));
    }
    let local = Some("127.0.0.1:0".parse().unwrap());
    let mixed = ConnectOptions { local, ..ConnectOptions::default() };
    assert!(matches!(
        rig.engine.connect("[::1]:9".parse::<Addr>().unwrap(), mixed),
        Err(Error::Address { .. })
    ));
    assert_eq!(rig.engine.connections(), 0);
}

pub fn connect_limit(variant: &Variant) {
    let mut rig = Rig::with(variant.config().connections_max(2));
    let listener = listen_local().unwrap();
    let addr = listener.local_addr().unwrap();
    let first = rig.engine.connect(addr, ConnectOptions::default()).unwrap();
    rig.engine.connect(addr, ConnectOptions::default()).unwrap();
    let refused = rig.engine.connect(addr, ConnectOptions::default());
    assert!(
        matches!(refused, Err(Error::Limit { limit: "connections_max", value: 2 })),
        "{refused:?}"
    );
    rig.engine.abort(first).unwrap();
    rig.wait_closed(first);
    rig.engine.connect(addr, ConnectOptions::default()).unwrap();
}

pub fn unix_backlog_full(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let name = format!("proactor-backlog-{}", std::process::id());
    let addr = Addr::UnixAbstract(name.clone().into_bytes());
    let listener = listen_abstract(&name);
    let conns: Vec<ConnId> = (0..4)
        .map(|_| rig.engine.connect(addr.clone(), ConnectOptions::default()).unwrap())
        .collect();
    rig.poll_for(Duration::from_millis(30));
    // Two fit into the backlog; the others wait until those are accepted.
    let server = spawn(move || (0..4).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>());
    let deadline = now() + patience();
    while !server.is_finished() {
        assert!(now() < deadline, "the waiting connects never completed");
        rig.poll(Duration::from_millis(10));
    }
    let peers = server.join().unwrap();
    for conn in &conns {
        rig.engine.send(*conn, "x").unwrap();
        rig.engine.close(*conn).unwrap();
    }
    let readers: Vec<_> = peers.into_iter().map(|peer| spawn(move || read_all(peer))).collect();
    for conn in conns {
        assert_eq!(rig.wait_closed(conn).kind, CloseKind::Local);
    }
    readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), b"x"));
}
