//! Faults of a simulated world: drawn from probabilities, forced, or scripted at a moment.

use crate::{Node, PORT, busy_exchanges, world_with_echo};
use proactor::sim::{Action, Fault, Faults, Link, World};
use proactor::*;
use std::time::Duration;

#[test]
fn partitions_hold_packets_back_until_they_heal() {
    let (world, server, client) = world_with_echo(1);
    let mut node = Node::new(&client);
    let conn = node.connect((server.ip(), PORT));
    let now = world.now();
    world.at(now + Duration::from_millis(1), Action::Partition(server.clone(), client.clone()));
    world.at(now + Duration::from_secs(30), Action::Heal(client.clone(), server.clone()));
    assert!(node.poll(Duration::from_millis(2)).is_empty());
    node.engine.send(conn, "held back bytes").unwrap();
    assert!(node.poll(Duration::from_secs(20)).is_empty(), "a packet passed the partition");
    // A connect waits too: its SYN is retransmitted.
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
    assert_eq!(seen.0, b"held back bytes");
    // If the peer never answers, the kernel ends the connection after about fifteen minutes
    // (tcp_retries2 in tcp(7)).
    node.engine.close(late).unwrap();
    node.wait_closed(late);
    world.act(Action::Crash(server.clone()));
    node.engine.send(conn, "no answer").unwrap();
    let (_, reason) = node.wait_closed(conn);
    assert_eq!((reason.kind, reason.errno), (CloseKind::Reset, Some(Errno(libc::ETIMEDOUT))));
}

#[test]
fn crashed_hosts_lose_everything_and_restart() {
    let world = World::new(4);
    let (server, client) = (world.host("server"), world.host("client"));
    let mut node = Node::new(&server);
    node.engine.listen((server.ip(), PORT), ListenOptions::default()).unwrap();
    let mut peer = Node::new(&client);
    let conn = peer.connect((server.ip(), PORT));
    assert!(matches!(node.poll(Duration::from_millis(1))[0].event, Event::Accepted { .. }));
    world.act(Action::Crash(server.clone()));
    assert!(matches!(node.engine.poll(&mut node.out, None), Err(Error::Simulation(Halt::Crashed))));
    assert!(matches!(server.engine(Config::default()), Err(Error::Simulation(Halt::Crashed))));
    // The client gets no event. After the restart, the host answers its bytes with a reset.
    assert!(peer.poll(Duration::from_secs(60)).is_empty());
    let at = world.now() + Duration::from_secs(5);
    world.at(at, Action::Restart(server.clone()));
    peer.engine.send(conn, "bytes").unwrap();
    assert_eq!(peer.wait_closed(conn).1.errno, Some(Errno(libc::ECONNRESET)));
    assert!(world.now() >= at);
    // The old engine stays unusable; the host can have a new one.
    assert!(matches!(node.engine.poll(&mut node.out, None), Err(Error::Simulation(Halt::Crashed))));
    drop(node);
    let mut node = Node::new(&server);
    node.engine.listen((server.ip(), PORT), ListenOptions::default()).unwrap();
    peer.connect((server.ip(), PORT));
    assert_eq!(leaked_engines(), 0);
}

#[test]
fn resets_come_after_the_exact_byte() {
    for bytes in [0u64, 1, 3, 1_000, 70_000] {
        let (world, server, client) = world_with_echo(1);
        let mut node = Node::new(&client);
        let conn = node.connect((server.ip(), PORT));
        world.act(Action::ResetAfter { from: client.clone(), to: server.clone(), bytes });
        node.engine.send(conn, vec![1; 100_000]).unwrap();
        let (back, reason) = node.wait_closed(conn);
        assert_eq!((reason.kind, reason.errno), (CloseKind::Reset, Some(Errno(libc::ECONNRESET))));
        assert!(
            back.len() as u64 <= bytes && reason.unsent_bytes > 0,
            "{} came back of {bytes}",
            back.len()
        );
        // The server's end is reset too.
        world.sleep(Duration::from_secs(1));
        assert_eq!(world.census().sockets, 0, "after {bytes} bytes");
    }
}

#[test]
fn each_fault_can_be_forced_and_disabled() {
    // Forced: it happens the given number of times, at the next occasions.
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
        // Disabled: it never happens.
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
fn completions_are_reordered() {
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
fn hosts_crash_at_random_and_restart() {
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
fn extreme_durations_are_valid() {
    let (world, server, client) = world_with_echo(1);
    let faults = Faults::harmless(0.5).delay_max(Duration::MAX).partition_max(Duration::MAX);
    world.set_faults(faults);
    let link =
        Link { latency: Duration::MAX, jitter: Duration::MAX, bandwidth: Some(0), buffer_bytes: 0 };
    world.set_link(&server, &client, link);
    let mut node = Node::new(&client);
    let conn = node.engine.connect((server.ip(), PORT), ConnectOptions::default()).unwrap();
    node.engine.send(conn, vec![1; 1000]).unwrap();
    // Completions may be decades late.
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
fn fault_plans_have_a_text_form() {
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
fn descriptors_run_out() {
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
    assert_eq!(node.wait_closed(conn).1.errno, Some(Errno(libc::EMFILE)));
    peers.pop();
    drop(peers);
}
