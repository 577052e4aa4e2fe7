//! Simulated worlds: what is promised of time, chance, faults and programs. The engine's own
//! behaviour there is in the conformance suite.

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

    /// Polls until a connection ends; what it received on the way.
    fn end_of(&mut self, conn: ConnId) -> (Vec<u8>, CloseReason) {
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

    /// Polls until it is connected.
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

/// An echo server until the world ends.
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

/// Sends `len` bytes to the echo server and half-closes; what came back.
fn exchange(client: &Host, addr: impl Into<Addr>, len: usize) -> (Vec<u8>, CloseReason) {
    let mut node = Node::new(client);
    let conn = node.engine.connect(addr, ConnectOptions::default()).unwrap();
    node.engine.send(conn, vec![7; len]).unwrap();
    node.engine.shutdown_write(conn).unwrap();
    node.end_of(conn)
}

/// Four exchanges at a time on one engine, which pauses and resumes them in turn; how much came
/// back, and how each ended.
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
        assert!(round < 10_000, "no end: {ends:?}");
        // Now and then another one has to wait.
        for (index, conn) in conns.iter().enumerate() {
            let _ = match (round + index) % 4 {
                0 => node.engine.pause_reads(*conn),
                _ => node.engine.resume_reads(*conn),
            };
        }
        for completion in node.poll(Duration::from_millis(1)) {
            let end = &mut ends
                [conns.iter().position(|conn| *conn == completion.conn).expect("one of the four")];
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
    unreachable!("the loop ends by itself")
}

#[test]
fn an_hour_passes_in_no_time() {
    let world = World::new(1);
    let mut node = Node::new(&world.host("alone"));
    let (real, start) = (Instant::now(), node.engine.now());
    node.engine.timer_after(Duration::from_secs(3600), 1).unwrap();
    assert_eq!(node.poll(Duration::from_secs(1800)).len(), 0);
    assert_eq!(node.poll(Duration::from_secs(1801)).len(), 1);
    assert!(node.engine.now() - start >= Duration::from_secs(3600));
    assert!(real.elapsed() < Duration::from_secs(60), "virtual time is not waited for");
    assert_eq!(world.now(), node.engine.now() - start);
}

#[test]
fn equal_seeds_are_equal_runs_with_programs_too() {
    let run = |seed| {
        let (world, server, client) = world_with_echo(seed);
        world.keep_trace(100_000);
        world.set_faults(Faults::harmless(0.2).with(Fault::Reset, 0.01));
        let others: Vec<_> = (0..3)
            .map(|index| {
                let (client, addr) = (client.clone(), (server.ip(), PORT));
                world.spawn(&format!("client {index}"), move || exchange(&client, addr, 20_000).1)
            })
            .collect();
        let reasons: Vec<CloseReason> =
            others.into_iter().map(|program| program.join().unwrap()).collect();
        (world.trace_hash(), world.trace(), reasons)
    };
    let (first, again, other) = (run(5), run(5), run(6));
    assert_eq!(first, again);
    assert_ne!(first.0, other.0);
    assert!(first.1.contains("FAULT short-read") && first.1.lines().count() > 100);
}

#[test]
fn a_wait_until_the_end_of_time_is_one_for_nothing() {
    let world = World::new(1);
    let host = world.host("alone");
    let mut node = Node::new(&host);
    let at_rest = |result| matches!(result, Err(Error::Simulation(Halt::AtRest)));
    assert!(at_rest(node.engine.poll(&mut node.out, Some(Duration::MAX))));
    node.engine.timer_after(Duration::MAX, 1).unwrap();
    assert!(at_rest(node.engine.poll(&mut node.out, None)));
    world.sleep(Duration::MAX);
    world.at(Duration::MAX, Action::Heal(host.clone(), host.clone()));
    // The clock did not come near its end: everything still works.
    node.engine.listen((host.ip(), PORT), ListenOptions::default()).unwrap();
    node.connect((host.ip(), PORT));
}

#[test]
fn a_wait_for_nothing_is_an_error() {
    let (world, _, client) = world_with_echo(1);
    let mut node = Node::new(&client);
    let error = node.engine.poll(&mut node.out, None).unwrap_err();
    assert!(matches!(error, Error::Simulation(Halt::AtRest)), "{error}");
    assert!(matches!(world.run_until(|| false), Err(Error::Simulation(Halt::AtRest))));
    world.run_until(|| true).unwrap();
    // A program that others wait for is told, not those who wait.
    let host = client.clone();
    let program = world.spawn("waits for ever", move || {
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
    let stubborn = world.spawn("does not listen", move || {
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
fn a_panic_is_one_program_s_affair() {
    let (world, server, client) = world_with_echo(3);
    let (host, addr) = (client.clone(), (server.ip(), PORT));
    let program = world.spawn("panics", move || {
        let mut node = Node::new(&host);
        node.connect(addr);
        panic!("on purpose");
    });
    assert!(program.join().is_err());
    // Its kernel closed what it had open, and the server closed its end.
    world.sleep(Duration::from_secs(1));
    assert_eq!(world.census(), Census { sockets: 0, listeners: 1, descriptors: 1 });
    assert_eq!(exchange(&client, addr, 10).0.len(), 10);
}

#[test]
fn connects_end_in_every_way() {
    let (world, server, client) = world_with_echo(1);
    let silent = "192.0.2.9".parse().unwrap();
    world.black_hole(silent);
    let mut node = Node::new(&client);
    let mut ends = |addr: Addr, timeout| {
        let start = node.engine.now();
        let options = ConnectOptions { timeout, ..ConnectOptions::default() };
        let conn = node.engine.connect(addr, options).unwrap();
        (node.end_of(conn).1, node.engine.now() - start)
    };
    let brief = Some(Duration::from_millis(300));
    assert_eq!(ends((server.ip(), 9).into(), brief).0.errno, Some(Errno(libc::ECONNREFUSED)));
    assert_eq!(
        ends(("192.0.2.8".parse::<std::net::IpAddr>().unwrap(), 9).into(), brief).0.kind,
        CloseKind::Unreachable
    );
    let (hangs, took) = ends((silent, 9).into(), brief);
    assert!(
        hangs.kind == CloseKind::ConnectTimedOut
            && took >= Duration::from_millis(300)
            && hangs.errno.is_none()
    );
    // Without a timeout of its own, the kernel's.
    let (hangs, took) = ends((silent, 9).into(), Some(Duration::from_secs(600)));
    assert_eq!(
        (hangs.kind, hangs.errno),
        (CloseKind::ConnectTimedOut, Some(Errno(libc::ETIMEDOUT)))
    );
    assert_eq!(took.as_secs(), 127);
    assert_eq!(ends(Addr::Unix("/nowhere".into()), brief).0.errno, Some(Errno(libc::ENOENT)));
    // IPv6, and loopback of its own: the server is another host.
    assert_eq!(
        exchange(&client, (server.ipv6(), PORT), 5).1.errno,
        Some(Errno(libc::ECONNREFUSED))
    );
    assert_eq!(ends(([127, 0, 0, 1], PORT).into(), brief).0.kind, CloseKind::Refused);
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
    // Half a megabyte there and back at a megabyte a second, overlapping.
    assert!(took > Duration::from_millis(520) && took < Duration::from_millis(1500), "{took:?}");
}

#[test]
fn partitions_hold_packets_back_until_they_heal() {
    let (world, server, client) = world_with_echo(1);
    let mut node = Node::new(&client);
    let conn = node.connect((server.ip(), PORT));
    let now = world.now();
    world.at(now + Duration::from_millis(1), Action::Partition(server.clone(), client.clone()));
    world.at(now + Duration::from_secs(30), Action::Heal(client.clone(), server.clone()));
    assert!(node.poll(Duration::from_millis(2)).is_empty());
    node.engine.send(conn, "through the cut").unwrap();
    assert!(node.poll(Duration::from_secs(20)).is_empty(), "nothing passes");
    // A connect waits too: its SYN is sent again.
    let late = node.engine.connect((server.ip(), PORT), ConnectOptions::default()).unwrap();
    let mut seen = (Vec::new(), false);
    while seen.0.len() < 15 || !seen.1 {
        for completion in node.poll(Duration::from_secs(100)) {
            match completion.event {
                Event::Received(data) => seen.0.extend_from_slice(&data),
                Event::Connected => seen.1 = completion.conn == late,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(seen.0, b"through the cut");
    // A connection that sends into a cut that never heals is given up after some fifteen minutes.
    node.engine.close(late).unwrap();
    node.end_of(late);
    world.act(Action::Crash(server.clone()));
    node.engine.send(conn, "is anybody there?").unwrap();
    let (_, reason) = node.end_of(conn);
    assert_eq!((reason.kind, reason.errno), (CloseKind::Reset, Some(Errno(libc::ETIMEDOUT))));
}

#[test]
fn crashed_hosts_lose_everything_and_come_back() {
    let world = World::new(4);
    let (server, client) = (world.host("server"), world.host("client"));
    let mut node = Node::new(&server);
    node.engine.listen((server.ip(), PORT), ListenOptions::default()).unwrap();
    let mut far = Node::new(&client);
    let conn = far.connect((server.ip(), PORT));
    assert!(matches!(node.poll(Duration::from_millis(1))[0].event, Event::Accepted { .. }));
    world.act(Action::Crash(server.clone()));
    assert!(matches!(node.engine.poll(&mut node.out, None), Err(Error::Simulation(Halt::Crashed))));
    assert!(matches!(server.engine(Config::default()), Err(Error::Simulation(Halt::Crashed))));
    // The client hears nothing; what it sends is answered by a reset after the restart.
    assert!(far.poll(Duration::from_secs(60)).is_empty());
    let at = world.now() + Duration::from_secs(5);
    world.at(at, Action::Restart(server.clone()));
    far.engine.send(conn, "hello?").unwrap();
    assert_eq!(far.end_of(conn).1.errno, Some(Errno(libc::ECONNRESET)));
    assert!(world.now() >= at);
    // The old engine stays dead; a new one takes its place.
    assert!(matches!(node.engine.poll(&mut node.out, None), Err(Error::Simulation(Halt::Crashed))));
    drop(node);
    let mut node = Node::new(&server);
    node.engine.listen((server.ip(), PORT), ListenOptions::default()).unwrap();
    far.connect((server.ip(), PORT));
    assert_eq!(leaked_engines(), 0);
}

#[test]
fn resets_come_after_the_very_byte() {
    for bytes in [0u64, 1, 3, 1_000, 70_000] {
        let (world, server, client) = world_with_echo(1);
        let mut node = Node::new(&client);
        let conn = node.connect((server.ip(), PORT));
        world.act(Action::ResetAfter { from: client.clone(), to: server.clone(), bytes });
        node.engine.send(conn, vec![1; 100_000]).unwrap();
        let (back, reason) = node.end_of(conn);
        assert_eq!((reason.kind, reason.errno), (CloseKind::Reset, Some(Errno(libc::ECONNRESET))));
        assert!(
            back.len() as u64 <= bytes && reason.unsent_bytes > 0,
            "{} came back of {bytes}",
            back.len()
        );
        // The server's end learns of it as well.
        world.sleep(Duration::from_secs(1));
        assert_eq!(world.census().sockets, 0, "after {bytes} bytes");
    }
}

#[test]
fn each_fault_can_be_forced_and_switched_off() {
    // Forced: it happens just so often, at the next occasions, whatever its probability.
    for fault in
        Fault::ALL.iter().copied().filter(|fault| !matches!(fault, Fault::Hang | Fault::Crash))
    {
        let (world, server, client) = world_with_echo(2);
        world.keep_trace(usize::MAX);
        for host in [&server, &client] {
            world.act(Action::Force { host: host.clone(), fault, times: 1 });
        }
        let ends = busy_exchanges(&client, (server.ip(), PORT), 30_000);
        let happened = world.trace().matches(&format!("FAULT {fault}\n")).count();
        assert!((1..=2).contains(&happened), "{fault}: {happened} times");
        if fault.is_harmless() {
            assert_eq!(ends, [(30_000, CloseKind::PeerClosed); 4], "{fault}");
        }
        // Switched off: never.
        let (world, server, client) = world_with_echo(2);
        world.keep_trace(usize::MAX);
        world.set_faults(Faults::harmless(0.3));
        world.switch_off(fault);
        busy_exchanges(&client, (server.ip(), PORT), 3_000);
        assert!(!world.trace().contains(&format!("FAULT {fault}\n")), "{fault} is off");
        assert_eq!(world.faults().probability(fault), 0.0);
    }
}

#[test]
fn completions_overtake_each_other() {
    let (world, server, client) = world_with_echo(2);
    world.keep_trace(usize::MAX);
    world.set_faults(Faults::default().with(Fault::Reorder, 1.0));
    assert_eq!(
        busy_exchanges(&client, (server.ip(), PORT), 50_000),
        [(50_000, CloseKind::PeerClosed); 4]
    );
    assert!(world.trace().contains("FAULT reorder"));
}

#[test]
fn hosts_crash_by_chance_and_come_back() {
    let (world, server, client) = world_with_echo(2);
    world.set_faults(
        Faults::default().with(Fault::Crash, 0.02).partition_max(Duration::from_millis(10)),
    );
    let (mut crashes, mut exchanges) = (0, 0);
    for _ in 0..200 {
        let Ok(mut engine) = client.engine(Config::default()) else {
            crashes += 1;
            world.sleep(Duration::from_millis(20));
            continue;
        };
        let conn = engine.connect((server.ip(), PORT), ConnectOptions::default()).unwrap();
        let mut out = Completions::with_capacity(8);
        while engine.is_live(conn) {
            match engine.poll(&mut out, Some(Duration::from_millis(50))) {
                Ok(_) => {
                    exchanges += out
                        .drain()
                        .filter(|completion| matches!(completion.event, Event::Connected))
                        .count()
                }
                Err(Error::Simulation(Halt::Crashed)) => break,
                Err(error) => panic!("{error}"),
            }
            engine.close(conn).unwrap_or_default();
        }
        crashes += u32::from(engine.is_live(conn));
    }
    assert!(crashes > 2, "{crashes} crashes");
    assert_eq!(leaked_engines(), 0);
    println!("{crashes} crashes, {exchanges} connects");
}

#[test]
fn extreme_values_are_only_slow() {
    let (world, server, client) = world_with_echo(1);
    let faults = Faults::harmless(0.5).delay_max(Duration::MAX).partition_max(Duration::MAX);
    world.set_faults(faults);
    let link =
        Link { latency: Duration::MAX, jitter: Duration::MAX, bandwidth: Some(0), buffer_bytes: 0 };
    world.set_link(&server, &client, link);
    let mut node = Node::new(&client);
    let conn = node.engine.connect((server.ip(), PORT), ConnectOptions::default()).unwrap();
    node.engine.send(conn, vec![1; 1000]).unwrap();
    // Completions may come decades late.
    let mut kind = None;
    while kind.is_none() {
        let list = node.poll(Duration::from_secs(1 << 33));
        kind = list.iter().find_map(|completion| match completion.event {
            Event::Closed(reason) => Some(reason.kind),
            _ => None,
        });
    }
    assert_eq!(kind, Some(CloseKind::ConnectTimedOut));
    world.at(Duration::MAX, Action::Crash(server.clone()));
    assert!(
        std::panic::catch_unwind(|| World::new(2).act(Action::Crash(server))).is_err(),
        "a host of another world"
    );
}

#[test]
fn faults_are_plans_in_text() {
    assert_eq!(Faults::default().to_string(), "none");
    let plan = Faults::default().with(Fault::Hang, 0.25).with(Fault::ShortRead, 1.0);
    assert_eq!(plan.to_string(), "short-read=1 hang=0.25");
    for fault in Fault::ALL {
        assert_eq!(Fault::from_name(fault.name()), Some(*fault));
    }
    assert_eq!(Faults::from_seed(9), Faults::from_seed(9));
    assert_ne!(Faults::from_seed(9), Faults::from_seed(10));
}

#[test]
fn descriptors_run_out_and_come_back() {
    let world = World::new(1);
    let (server, client) = (world.host("server"), world.host("client"));
    let mut node = Node::new(&server);
    let listener = node.engine.listen((server.ip(), PORT), ListenOptions::default()).unwrap();
    world.act(Action::Descriptors { host: server.clone(), max: 2 });
    let mut peers: Vec<_> = (0..2).map(|_| client.connect((server.ip(), PORT)).unwrap()).collect();
    let list = node.poll(Duration::from_secs(1));
    assert!(matches!(list[0].event, Event::Accepted { .. }));
    let paused = |completion: &Completion| match completion.event {
        Event::ListenerPaused { listener: id, errno } => {
            id == listener && errno == Some(Errno(libc::EMFILE))
        }
        _ => false,
    };
    let list: Vec<_> = list.into_iter().chain(node.poll(Duration::from_secs(1))).collect();
    assert!(list.iter().any(paused), "{list:?}");
    assert_eq!(server.descriptors(), 2);
    let conn = node.engine.connect((client.ip(), 1), ConnectOptions::default()).unwrap();
    assert_eq!(node.end_of(conn).1.errno, Some(Errno(libc::EMFILE)));
    peers.pop();
    drop(peers);
}

#[test]
fn peers_are_plain_sockets() {
    let world = World::new(1);
    let (server, client) = (world.host("server"), world.host("client"));
    let listener = server.listen((server.ip(), PORT)).unwrap();
    let mut near = client.connect((server.ip(), PORT)).unwrap();
    let mut far = listener.accept().unwrap();
    assert_eq!(far.peer_addr().unwrap(), near.local_addr().unwrap());
    near.write_all(b"question").unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    far.write_all(&[1; 1000]).unwrap();
    far.reset_on_drop();
    drop(far);
    let mut bytes = Vec::new();
    assert_eq!(
        near.read_to_end(&mut bytes).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(client.connect((server.ip(), 9)).is_err());
    drop((near, listener));
    assert_eq!(world.census(), Census { sockets: 0, listeners: 0, descriptors: 0 });
}

#[test]
fn a_world_can_be_stepped_by_hand() {
    let world = World::new(1);
    let (server, client) = (world.host("server"), world.host("client"));
    let (mut a, mut b) = (Node::new(&server), Node::new(&client));
    a.engine.listen((server.ip(), PORT), ListenOptions::default()).unwrap();
    let conn = b.engine.connect((server.ip(), PORT), ConnectOptions::default()).unwrap();
    b.engine.timer_after(Duration::from_secs(60), 9).unwrap();
    let (mut steps, mut told) = (0, Vec::new());
    while told.len() < 3 {
        for node in [&mut a, &mut b] {
            told.extend(node.poll(Duration::ZERO).into_iter().map(|completion| completion.event));
        }
        assert!(world.step() || told.len() == 3, "something is coming");
        steps += 1;
        assert!(steps < 100, "{told:?}");
    }
    assert!(
        matches!(told[..], [Event::Accepted { .. }, Event::Connected, Event::Timer { .. }]),
        "{told:?}"
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
fn simulated_engines_say_what_they_are() {
    let world = World::new(1);
    let host = world.host("somewhere");
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
    assert_eq!(host.name(), "somewhere");
}
