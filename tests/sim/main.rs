//! Simulated worlds: time, links, hosts and programs. Owns: tests of what `proactor::sim`
//! documents. How the engine behaves in a world is tested by the conformance suite.

mod faults;

use proactor::sim::{Action, Census, Fault, Faults, Host, Link, World};
use proactor::*;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;

/// An engine with its completions.
struct Node {
    engine: Engine,
    out: Completions,
}

impl Node {
    fn new(host: &Host) -> Node {
        Node {
            engine: host.engine(Config::default()).unwrap(),
            out: Completions::with_capacity(64),
        }
    }

    fn poll(&mut self, timeout: Duration) -> Vec<Completion> {
        self.engine.poll(&mut self.out, Some(timeout)).unwrap();
        self.out.drain().collect()
    }

    /// Polls until a connection has ended. Returns what it received.
    fn wait_closed(&mut self, conn: ConnId) -> (Vec<u8>, CloseReason) {
        let mut bytes = Vec::new();
        for _ in 0..10_000 {
            for completion in self.poll(Duration::from_secs(10)) {
                match completion.event {
                    Event::Received(data) if completion.conn == conn => {
                        bytes.extend_from_slice(&data)
                    }
                    Event::Closed(reason) if completion.conn == conn => return (bytes, reason),
                    _ => {}
                }
            }
        }
        panic!("{conn} never ended");
    }

    /// Connects, and polls until `Connected`.
    fn connect(&mut self, addr: impl Into<Addr>) -> ConnId {
        let conn = self.engine.connect(addr, ConnectOptions::default()).unwrap();
        while !self
            .poll(Duration::from_secs(1))
            .iter()
            .any(|completion| matches!(completion.event, Event::Connected))
        {
            assert!(self.engine.is_live(conn), "the connect failed");
        }
        conn
    }
}

/// An echo server, which runs until the world ends.
fn echo(host: Host) -> Result<(), Error> {
    let mut node = Node::new(&host);
    node.engine.listen((host.ip(), PORT), ListenOptions::default())?;
    loop {
        node.engine.poll(&mut node.out, None)?;
        for completion in node.out.drain() {
            match completion.event {
                Event::Received(data) => drop(node.engine.send(completion.conn, data)),
                Event::ReadClosed => node.engine.close(completion.conn)?,
                _ => {}
            }
        }
    }
}

/// A world with an echo server on its first host, and a second host.
fn world_with_echo(seed: u64) -> (World, Host, Host) {
    let world = World::new(seed);
    let (server, client) = (world.host("server"), world.host("client"));
    let host = server.clone();
    world.spawn("echo", move || echo(host));
    world.sleep(Duration::from_micros(10));
    (world, server, client)
}

/// Sends `len` bytes to the echo server and half-closes. Returns what came back.
fn exchange(client: &Host, addr: impl Into<Addr>, len: usize) -> (Vec<u8>, CloseReason) {
    let mut node = Node::new(client);
    let conn = node.engine.connect(addr, ConnectOptions::default()).unwrap();
    node.engine.send(conn, vec![7; len]).unwrap();
    node.engine.shutdown_write(conn).unwrap();
    node.wait_closed(conn)
}

/// Four exchanges at a time on one engine, which pauses and resumes them in turn. Returns how many
/// bytes came back on each, and how it ended.
fn busy_exchanges(client: &Host, addr: impl Into<Addr>, len: usize) -> Vec<(usize, CloseKind)> {
    let (mut node, addr) = (Node::new(client), addr.into());
    let conns: Vec<ConnId> = (0..4)
        .map(|_| {
            let conn = node.engine.connect(addr.clone(), ConnectOptions::default()).unwrap();
            node.engine.send(conn, vec![7; len]).unwrap();
            node.engine.shutdown_write(conn).unwrap();
            conn
        })
        .collect();
    let mut ends = vec![(0, CloseKind::Failed); conns.len()];
    for round in 0.. {
        assert!(round < 10_000, "they never ended: {ends:?}");
        // Each is paused in every fourth round.
        for (index, conn) in conns.iter().enumerate() {
            let _ = match (round + index) % 4 {
                0 => node.engine.pause_reads(*conn),
                _ => node.engine.resume_reads(*conn),
            };
        }
        for completion in node.poll(Duration::from_millis(1)) {
            let end = &mut ends[conns
                .iter()
                .position(|conn| *conn == completion.conn)
                .expect("a connection of this engine")];
            match completion.event {
                Event::Received(data) => end.0 += data.len(),
                Event::Closed(reason) => end.1 = reason.kind,
                _ => {}
            }
        }
        if node.engine.connections() == 0 {
            return ends;
        }
    }
    unreachable!("the loop returns")
}

#[test]
fn virtual_time_does_not_take_real_time() {
    let world = World::new(1);
    let mut node = Node::new(&world.host("alone"));
    let (real, start) = (Instant::now(), node.engine.now());
    node.engine.timer_after(Duration::from_secs(3600), 1).unwrap();
    assert_eq!(node.poll(Duration::from_secs(1800)).len(), 0);
    assert_eq!(node.poll(Duration::from_secs(1801)).len(), 1);
    assert!(node.engine.now() - start >= Duration::from_secs(3600));
    assert!(real.elapsed() < Duration::from_secs(60), "a poll waited in real time");
    assert_eq!(world.now(), node.engine.now() - start);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let (world, server, client) = world_with_echo(seed);
        world.keep_trace(100_000);
        world.set_faults(Faults::harmless(0.2).with(Fault::Reset, 0.01));
        let programs: Vec<_> = (0..3)
            .map(|index| {
                let (client, addr) = (client.clone(), (server.ip(), PORT));
                world.spawn(&format!("client {index}"), move || exchange(&client, addr, 20_000).1)
            })
            .collect();
        let reasons: Vec<CloseReason> =
            programs.into_iter().map(|program| program.join().unwrap()).collect();
        (world.trace_hash(), world.trace(), reasons)
    };
    let (first, again, other) = (run(5), run(5), run(6));
    assert_eq!(first, again);
    assert_ne!(first.0, other.0);
    assert!(first.1.contains("FAULT short-read") && first.1.lines().count() > 100);
}

#[test]
fn an_unlimited_timeout_at_rest_is_an_error() {
    let world = World::new(1);
    let host = world.host("alone");
    let mut node = Node::new(&host);
    let at_rest = |result| matches!(result, Err(Error::Simulation(Halt::AtRest)));
    assert!(at_rest(node.engine.poll(&mut node.out, Some(Duration::MAX))));
    node.engine.timer_after(Duration::MAX, 1).unwrap();
    assert!(at_rest(node.engine.poll(&mut node.out, None)));
    world.sleep(Duration::MAX);
    world.at(Duration::MAX, Action::Heal(host.clone(), host.clone()));
    // The clock has not advanced to its maximum: the engine still works.
    node.engine.listen((host.ip(), PORT), ListenOptions::default()).unwrap();
    node.connect((host.ip(), PORT));
}

#[test]
fn a_poll_at_rest_is_an_error() {
    let (world, _, client) = world_with_echo(1);
    let mut node = Node::new(&client);
    let error = node.engine.poll(&mut node.out, None).unwrap_err();
    assert!(matches!(error, Error::Simulation(Halt::AtRest)), "{error}");
    assert!(matches!(world.run_until(|| false), Err(Error::Simulation(Halt::AtRest))));
    world.run_until(|| true).unwrap();
    // The program at rest gets the error, not the one that joins it.
    let host = client.clone();
    let program = world.spawn("at rest", move || {
        let mut node = Node::new(&host);
        node.engine.poll(&mut node.out, None).unwrap_err().to_string()
    });
    assert!(program.join().unwrap().contains("nothing will ever happen"));
}

#[test]
fn programs_end_with_their_world() {
    let (world, server, _) = world_with_echo(1);
    let host = server.clone();
    let program = world.spawn("sleeper", move || {
        loop {
            let mut node = Node::new(&host);
            if let Err(error) = node.engine.poll(&mut node.out, Some(Duration::from_secs(1))) {
                return error.to_string();
            }
        }
    });
    let stubborn = world.spawn("ignores errors", move || {
        loop {
            let _ = server.connect((server.ip(), 1));
        }
    });
    world.sleep(Duration::from_secs(5));
    assert!(!program.is_finished() && !stubborn.is_finished());
    drop(world);
    assert!(program.join().unwrap().contains("the world has ended"));
    assert!(stubborn.join().is_err(), "ended by a panic");
}

#[test]
fn a_panic_ends_only_its_program() {
    let (world, server, client) = world_with_echo(3);
    let (host, addr) = (client.clone(), (server.ip(), PORT));
    let program = world.spawn("panics", move || {
        let mut node = Node::new(&host);
        node.connect(addr);
        panic!("on purpose");
    });
    assert!(program.join().is_err());
    // Its sockets were closed, and the server closed its end.
    world.sleep(Duration::from_secs(1));
    assert_eq!(world.census(), Census { sockets: 0, listeners: 1, descriptors: 1 });
    assert_eq!(exchange(&client, addr, 10).0.len(), 10);
}

#[test]
fn connects_fail_in_every_way() {
    let (world, server, client) = world_with_echo(1);
    let silent = "192.0.2.9".parse().unwrap();
    world.black_hole(silent);
    let mut node = Node::new(&client);
    let mut ends = |addr: Addr, timeout| {
        let start = node.engine.now();
        let options = ConnectOptions { timeout, ..ConnectOptions::default() };
        let conn = node.engine.connect(addr, options).unwrap();
        (node.wait_closed(conn).1, node.engine.now() - start)
    };
    let timeout = Some(Duration::from_millis(300));
    assert_eq!(ends((server.ip(), 9).into(), timeout).0.errno, Some(Errno(libc::ECONNREFUSED)));
    assert_eq!(
        ends(("192.0.2.8".parse::<std::net::IpAddr>().unwrap(), 9).into(), timeout).0.kind,
        CloseKind::Unreachable
    );
    let (hangs, took) = ends((silent, 9).into(), timeout);
    assert!(
        hangs.kind == CloseKind::ConnectTimedOut
            && took >= Duration::from_millis(300)
            && hangs.errno.is_none()
    );
    // Longer than the timeout of the kernel.
    let (hangs, took) = ends((silent, 9).into(), Some(Duration::from_secs(600)));
    assert_eq!(
        (hangs.kind, hangs.errno),
        (CloseKind::ConnectTimedOut, Some(Errno(libc::ETIMEDOUT)))
    );
    assert_eq!(took.as_secs(), 127);
    assert_eq!(ends(Addr::Unix("/nowhere".into()), timeout).0.errno, Some(Errno(libc::ENOENT)));
    // The server does not listen on IPv6, nor on the client's loopback.
    assert_eq!(
        exchange(&client, (server.ipv6(), PORT), 5).1.errno,
        Some(Errno(libc::ECONNREFUSED))
    );
    assert_eq!(ends(([127, 0, 0, 1], PORT).into(), timeout).0.kind, CloseKind::Refused);
}

#[test]
fn links_have_latency_and_bandwidth() {
    let (world, server, client) = world_with_echo(1);
    let link = Link {
        latency: Duration::from_millis(10),
        bandwidth: Some(1_000_000),
        buffer_bytes: 64 << 10,
        ..Link::default()
    };
    world.set_link(&server, &client, link);
    let start = world.now();
    assert_eq!(exchange(&client, (server.ip(), PORT), 500_000).0.len(), 500_000);
    let took = world.now() - start;
    // Half a megabyte in both directions at a megabyte per second; the directions overlap.
    assert!(took > Duration::from_millis(520) && took < Duration::from_millis(1500), "{took:?}");
}

#[test]
fn peers_are_blocking_sockets() {
    let world = World::new(1);
    let (server, client) = (world.host("server"), world.host("client"));
    let listener = server.listen((server.ip(), PORT)).unwrap();
    let mut local = client.connect((server.ip(), PORT)).unwrap();
    let mut remote = listener.accept().unwrap();
    assert_eq!(remote.peer_addr().unwrap(), local.local_addr().unwrap());
    local.write_all(b"request").unwrap();
    local.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    remote.read_to_string(&mut text).unwrap();
    assert_eq!(text, "request");
    remote.write_all(&[1; 1000]).unwrap();
    remote.reset_on_drop();
    drop(remote);
    let mut bytes = Vec::new();
    assert_eq!(
        local.read_to_end(&mut bytes).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(client.connect((server.ip(), 9)).is_err());
    drop((local, listener));
    assert_eq!(world.census(), Census { sockets: 0, listeners: 0, descriptors: 0 });
}

#[test]
fn a_world_can_be_stepped_without_programs() {
    let world = World::new(1);
    let (server, client) = (world.host("server"), world.host("client"));
    let (mut a, mut b) = (Node::new(&server), Node::new(&client));
    a.engine.listen((server.ip(), PORT), ListenOptions::default()).unwrap();
    let conn = b.engine.connect((server.ip(), PORT), ConnectOptions::default()).unwrap();
    b.engine.timer_after(Duration::from_secs(60), 9).unwrap();
    let (mut steps, mut events) = (0, Vec::new());
    while events.len() < 3 {
        for node in [&mut a, &mut b] {
            events.extend(node.poll(Duration::ZERO).into_iter().map(|completion| completion.event));
        }
        assert!(world.step() || events.len() == 3, "the world is at rest");
        steps += 1;
        assert!(steps < 100, "{events:?}");
    }
    assert!(
        matches!(events[..], [Event::Accepted { .. }, Event::Connected, Event::Timer { .. }]),
        "{events:?}"
    );
    assert!(world.now() >= Duration::from_secs(60));
    b.engine.abort(conn).unwrap();
    for _ in 0..10 {
        a.poll(Duration::ZERO);
        b.poll(Duration::ZERO);
        world.step();
    }
    assert!(!world.has_ready() && world.census().sockets <= 1);
}

#[test]
fn simulated_engines_report_their_backend() {
    let world = World::new(1);
    let host = world.host("host");
    let mut engine = world.engine(&host, Config::default()).unwrap();
    assert_eq!((engine.info().backend, engine.info().tier), (Backend::Sim, None));
    assert!(engine.info().to_string().contains("backend   sim"));
    assert!(matches!(engine.as_fd(), Err(Error::Unsupported { .. })));
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(
        engine.adopt(one.into(), SocketOptions::default()),
        Err(Error::Unsupported { .. })
    ));
    assert_eq!(engine.connections(), 0);
    let error =
        Engine::new(Config::default().ignore_environment(true).backend(Backend::Sim)).unwrap_err();
    assert!(error.to_string().contains("World::engine"), "{error}");
    assert_eq!(host.name(), "host");
}
