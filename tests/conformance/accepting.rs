//! Listeners, limits of connections and descriptors, and sockets that the engine takes over or
//! gives back.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use proactor::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub fn accept_many(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (listener, addr) = rig.listen_with(ListenOptions { tag: 5, ..ListenOptions::default() });
    let clients: Vec<_> = (0..200).map(|_| connect(addr).unwrap()).collect();
    let mut conns = std::collections::HashSet::new();
    rig.run("accepts", |_, completion| {
        if let Some(Completion { conn, tag, event: Event::Accepted { listener: from } }) =
            completion
        {
            assert_eq!((from, tag), (listener, 5));
            assert!(conns.insert(conn), "{conn} accepted twice");
        }
        conns.len() == 200
    });
    assert_eq!(rig.engine.connections(), 200);
    drop(clients);
}

pub fn close_listener_stops_accepting(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (listener, addr) = rig.listen();
    let mut client = connect(addr).unwrap();
    let conn = rig.until("accept", |_, completion| Some(completion.conn));
    rig.engine.close_listener(listener).unwrap();
    rig.until("the listener's end", |_, completion| match completion.event {
        Event::ListenerClosed { listener: id, errno } => {
            assert_eq!((id, errno), (listener, None));
            Some(())
        }
        other => panic!("{other:?}"),
    });
    assert!(connect(addr).is_err(), "the listener is closed");
    assert!(matches!(rig.engine.listener_addr(listener), Err(Error::Stale)));
    client.write_all(b"still here").unwrap();
    assert_eq!(rig.receive(conn, 10), b"still here");
    // The port is free again.
    rig.engine.listen(addr, ListenOptions::default()).unwrap();
}

pub fn listener_errors(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let taken = listen_local().unwrap();
    let error =
        rig.engine.listen(taken.local_addr().unwrap(), ListenOptions::default()).unwrap_err();
    assert_eq!(error.errno(), Some(Errno(libc::EADDRINUSE)), "{error}");
    assert!(error.to_string().contains("EADDRINUSE"), "{error}");
    let reuse = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let (_, addr) = rig.listen_with(reuse.clone());
    rig.engine.listen(addr, reuse).unwrap();
    let mut small = Rig::with(variant.config().listeners_max(1));
    small.listen();
    let refused =
        small.engine.listen("127.0.0.1:0".parse::<Addr>().unwrap(), ListenOptions::default());
    assert!(matches!(refused, Err(Error::Limit { limit: "listeners_max", value: 1 })));
}

pub fn connections_max_pauses_listeners(variant: &Variant) {
    let mut rig = Rig::with(variant.config().connections_max(3));
    let (listener, addr) = rig.listen();
    let mut clients: Vec<_> = (0..3).map(|_| connect(addr).unwrap()).collect();
    let (mut conns, mut paused) = (Vec::new(), 0);
    rig.run("a pause", |_, completion| {
        match completion {
            Some(Completion { conn, event: Event::Accepted { .. }, .. }) => conns.push(conn),
            Some(Completion { event: Event::ListenerPaused { listener: id, errno }, .. }) => {
                assert_eq!((id, errno), (listener, None));
                paused += 1;
            }
            _ => {}
        }
        conns.len() == 3 && paused == 1
    });
    rig.poll_for(Duration::from_millis(20));
    // The next connection waits in the backlog, with its bytes.
    let mut next = connect(addr).unwrap();
    next.write_all(b"patience").unwrap();
    assert!(rig.poll_for(Duration::from_millis(50)).is_empty());
    drop(clients.pop());
    rig.engine.close(conns[0]).unwrap();
    let (mut resumed, mut accepted) = (0, ConnId::NONE);
    let mut bytes = Vec::new();
    rig.run("the connection from the backlog", |engine, completion| {
        match completion {
            Some(Completion { event: Event::ListenerResumed { .. }, .. }) => resumed += 1,
            Some(Completion { conn, event: Event::Accepted { .. }, .. }) => accepted = conn,
            Some(Completion { event: Event::Received(data), .. }) => bytes.extend_from_slice(&data),
            Some(Completion { conn, event: Event::ReadClosed, .. }) => drop(engine.close(conn)),
            _ => {}
        }
        resumed == 1 && bytes == b"patience"
    });
    assert!(!accepted.is_none());
}

pub fn adopt_a_socketpair(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (near, mut far) = UnixStream::pair().unwrap();
    let AdoptedId::Conn(conn) = rig.engine.adopt(near.into(), SocketOptions::default()).unwrap()
    else {
        panic!("not a stream")
    };
    far.write_all(b"hello").unwrap();
    assert_eq!(rig.receive(conn, 5), b"hello");
    rig.engine.send(conn, "and back").unwrap();
    rig.engine.close(conn).unwrap();
    let reader = spawn(move || read_all(far));
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::Local);
    assert_eq!(reader.join().unwrap(), b"and back");
    // A descriptor that is not a stream socket is refused and closed.
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(rig.engine.adopt(file.into(), SocketOptions::default()).is_err());
    let unconnected =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    assert!(rig.engine.adopt(OwnedFd::from(unconnected), SocketOptions::default()).is_err());
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(matches!(
        rig.engine.adopt(datagram.into(), SocketOptions::default()),
        Err(Error::Unsupported { .. })
    ));
}

pub fn adopt_a_listener(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let AdoptedId::Listener(id) =
        rig.engine.adopt(listener.into(), SocketOptions::default()).unwrap()
    else {
        panic!("not a listener")
    };
    assert_eq!(rig.engine.listener_addr(id).unwrap(), Addr::Inet(addr));
    let mut client = connect(addr).unwrap();
    client.write_all(b"socket activation").unwrap();
    let conn = rig.until("accept", |_, completion| Some(completion.conn));
    assert_eq!(rig.receive(conn, 17), b"socket activation");
}

pub fn release_gives_the_descriptor_back(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.send(conn, "from the engine").unwrap();
    assert!(matches!(rig.engine.release(conn), Err(Error::State(_))), "a payload is queued");
    rig.engine.pause_reads(conn).unwrap();
    let mut released = None;
    rig.run("quiet", |engine, _| {
        released = engine.release(conn).ok();
        released.is_some()
    });
    let mut stream = TcpStream::from(released.expect("the loop ends with it"));
    stream.set_nonblocking(false).unwrap();
    assert!(!rig.engine.is_live(conn));
    peer.write_all(b"to the caller").unwrap();
    let mut bytes = [0; 13];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the caller");
    stream.write_all(b", and the caller").unwrap();
    let mut bytes = [0; 31];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the engine, and the caller");
    assert!(rig.poll_for(Duration::from_millis(10)).is_empty(), "an event of a released socket");
}

pub fn accepted_inherit_options(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let mut options = ListenOptions::default();
    options.socket.read_mode = ReadMode::Paused;
    options.socket.keepalive = Some((Duration::from_secs(60), Duration::from_secs(10)));
    let (_, addr) = rig.listen_with(options);
    let mut client = connect(addr).unwrap();
    client.write_all(b"x").unwrap();
    let conn = rig.until("accept", |_, completion| Some(completion.conn));
    assert!(rig.poll_for(Duration::from_millis(20)).is_empty(), "paused from the start");
    // A simulated socket has no descriptor.
    if let Some(fd) = rig.engine.fd(conn) {
        let socket = socket2::SockRef::from(&fd);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    }
    rig.engine.resume_reads(conn).unwrap();
    rig.receive(conn, 1);
}

pub fn ipv6_listener(variant: &Variant) {
    if !has_ipv6() {
        return;
    }
    let mut rig = Rig::new(variant);
    let listener =
        rig.engine.listen("[::]:0".parse::<Addr>().unwrap(), ListenOptions::default()).unwrap();
    let port = rig.engine.listener_addr(listener).unwrap().as_inet().unwrap().port();
    let clients = [
        connect(([127, 0, 0, 1], port).into()).unwrap(),
        connect((std::net::Ipv6Addr::LOCALHOST, port).into()).unwrap(),
    ];
    for client in &clients {
        let conn = rig.until("accept", |_, completion| Some(completion.conn));
        let Addr::Inet(peer) = rig.engine.peer_addr(conn).unwrap() else { panic!("inet") };
        assert_eq!(peer.port(), client.local_addr().unwrap().port());
    }
    let only = ListenOptions { v6_only: true, ..ListenOptions::default() };
    let listener = rig.engine.listen("[::]:0".parse::<Addr>().unwrap(), only).unwrap();
    let port = rig.engine.listener_addr(listener).unwrap().as_inet().unwrap().port();
    assert!(connect(([127, 0, 0, 1], port).into()).is_err());
}

pub fn descriptors_run_out(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (listener, addr) = rig.listen();
    let mut clients = Clients::start(addr);
    // Before the first poll: an armed multishot accept keeps the limit that it was armed with.
    let _fillers = limit_spare_descriptors(5);
    clients.wait_connected();
    let (mut open, mut seen, mut paused, mut resumed) = (Vec::new(), Vec::new(), 0, 0);
    rig.run("a pause", |_, completion| {
        match completion {
            Some(Completion { conn, event: Event::Accepted { .. }, .. }) => open.push(conn),
            Some(Completion { event: Event::Received(data), .. }) => seen.extend_from_slice(&data),
            Some(Completion { event: Event::ListenerPaused { listener: id, errno }, .. }) => {
                assert_eq!((id, errno), (listener, Some(Errno(libc::EMFILE))));
                paused += 1;
            }
            _ => {}
        }
        paused > 0 && !open.is_empty() && seen.len() == open.len()
    });
    // The engine does not spin while the listener is paused.
    let before = rig.engine.stats();
    let quiet = rig.poll_for(Duration::from_millis(500));
    let after = rig.engine.stats();
    assert!(quiet.is_empty(), "{quiet:?}");
    assert!(
        after.turns - before.turns < 100 && after.syscalls - before.syscalls < 200,
        "it spins: {before:?} {after:?}"
    );
    // As descriptors become free, all waiting clients are served.
    while seen.len() < 12 {
        let conn = open.remove(0);
        rig.engine.abort(conn).unwrap();
        let goal = seen.len() + 1;
        rig.run("one more", |_, completion| {
            match completion {
                Some(Completion { conn, event: Event::Accepted { .. }, .. }) => open.push(conn),
                Some(Completion { event: Event::Received(data), .. }) => {
                    seen.extend_from_slice(&data)
                }
                Some(Completion { event: Event::ListenerPaused { .. }, .. }) => paused += 1,
                Some(Completion { event: Event::ListenerResumed { .. }, .. }) => resumed += 1,
                _ => {}
            }
            seen.len() >= goal
        });
    }
    seen.sort_unstable();
    assert_eq!(seen, b"ABCDEFGHIJKL");
    for conn in open {
        rig.engine.abort(conn).unwrap();
    }
    rig.run("the last resume", |_, completion| {
        resumed += usize::from(matches!(
            completion,
            Some(Completion { event: Event::ListenerResumed { .. }, .. })
        ));
        resumed == paused
    });
    clients.stop();
}

pub fn connect_without_descriptors(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    rig.poll(Duration::ZERO);
    let _fillers = limit_spare_descriptors(0);
    let conn = rig.engine.connect(addr, ConnectOptions::default()).unwrap();
    let reason = rig.wait_closed(conn);
    assert_eq!((reason.kind, reason.errno), (CloseKind::ConnectFailed, Some(Errno(libc::EMFILE))));
}
