//! Dropping an engine at any moment. The suite counts descriptors, threads and leaked engines around each scenario; here the
//! engine is only brought to that moment.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use bytes::BytesMut;
use proactor::*;
use std::io::{Read, Write};
use std::time::Duration;

pub fn drop_idle(variant: &Variant) {
    drop(Rig::new(variant));
    let mut rig = Rig::new(variant);
    rig.poll(Duration::from_millis(1));
}

pub fn drop_while_connecting(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    rig.engine.connect(addr, ConnectOptions::default()).unwrap();
    drop(rig);
    let (listener, _fillers) = full_listener(0);
    let addr = listener.local_addr().unwrap();
    let mut rig = Rig::new(variant);
    for _ in 0..10 {
        let conn = rig.engine.connect(addr, ConnectOptions::default()).unwrap();
        rig.engine.send(conn, vec![0; 100_000]).unwrap();
    }
    rig.poll(Duration::from_millis(10));
}

pub fn drop_with_receives_armed(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let mut peers: Vec<Peer> = (0..20).map(|_| rig.pair().1).collect();
    rig.poll(Duration::from_millis(5));
    for peer in &mut peers {
        peer.write_all(&pattern(10_000)).unwrap();
    }
    // Data is on its way, or in buffers that nobody has looked at.
    drop(rig);
    for peer in &mut peers {
        let mut byte = [0];
        assert!(!matches!(peer.read(&mut byte), Ok(1..)), "the connection is gone");
    }
}

pub fn drop_half_sent(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let peers: Vec<_> = (0..5)
        .map(|_| {
            let (conn, peer) = rig.pair();
            rig.engine.send(conn, vec![7; 8 << 20]).unwrap();
            peer
        })
        .collect();
    rig.poll(Duration::from_millis(20));
    drop(rig);
    drop(peers);
}

pub fn drop_with_leases(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"kept").unwrap();
    let lease = rig.next_lease();
    peer.write_all(b"sent").unwrap();
    let sent = rig.next_lease();
    rig.engine.send(conn, sent).unwrap();
    drop(rig);
    assert!(b"kept".starts_with(&lease) && (lease.len() == 4 || variant.is_faulty()));
}

pub fn drop_while_accepting(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (_, addr) = rig.listen();
    rig.poll(Duration::from_millis(1));
    let clients: Vec<_> = (0..50).map(|_| connect(addr).unwrap()).collect();
    rig.poll(Duration::ZERO);
    drop(rig);
    assert!(connect(addr).is_err(), "nobody listens any more");
    drop(clients);
}

pub fn drop_while_filling(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.recv_into(conn, BytesMut::new(), 1 << 20).unwrap();
    peer.write_all(&pattern(1000)).unwrap();
    rig.poll(Duration::from_millis(10));
    drop(rig);
}

pub fn drop_zero_copy_in_flight(variant: &Variant) {
    let mut rig = Rig::with(variant.config().zero_copy_threshold(Some(4096)).zero_copy_anywhere(true));
    let (conn, peer) = rig.pair();
    for _ in 0..20 {
        let _ = rig.engine.send(conn, vec![1; 100_000]);
    }
    rig.poll(Duration::from_millis(20));
    // The peer has to go for the kernel to let go: on loopback the notification waits for its reader.
    let reader = spawn(move || {
        sleep(Duration::from_millis(50));
        drop(peer);
    });
    drop(rig);
    reader.join().unwrap();
}

pub fn drop_with_timers(variant: &Variant) {
    let mut rig = Rig::new(variant);
    for tag in 0..1000 {
        rig.engine.timer_after(Duration::from_secs(tag), tag).unwrap();
    }
    rig.engine.waker().wake();
    assert_eq!(rig.engine.as_fd().is_ok(), variant.simulated().is_none());
}

pub fn fork_in_the_middle(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"a").unwrap();
    let lease = rig.next_lease();
    // SAFETY: the child only uses the engine, the lease and _exit; this process has one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let refused = matches!(rig.engine.poll(&mut rig.out, Some(Duration::ZERO)), Err(Error::Forked));
        let intact = lease[..] == b"a"[..];
        drop(lease);
        drop(rig);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(if refused && intact { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child must be refused, and must not crash");
    // The parent goes on as if nothing had been.
    peer.write_all(b"b").unwrap();
    assert_eq!(rig.receive(conn, 1), b"b");
    rig.engine.send(conn, "c").unwrap();
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let mut byte = [0];
    peer.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"c");
    drop(lease);
}

pub fn engines_in_a_row(variant: &Variant) {
    // A thread has sixteen places for registered rings; an engine that is gone must have given its place back.
    let uses = |engine: &Engine| {
        let used = |report: &&CapabilityReport| report.state == CapabilityState::Used;
        engine.info().capabilities().iter().filter(used).map(|report| report.capability).collect::<Vec<_>>()
    };
    let first = uses(&engine(variant.config()).unwrap());
    for round in 0..40 {
        let engine = engine(variant.config()).unwrap();
        assert_eq!(uses(&engine), first, "engine {round}");
    }
}

pub fn many_engines_on_one_thread(variant: &Variant) {
    let mut rigs: Vec<Rig> = (0..20).map(|_| Rig::new(variant)).collect();
    for rig in &mut rigs {
        let (conn, mut peer) = rig.pair();
        peer.write_all(b"x").unwrap();
        assert_eq!(rig.receive(conn, 1), b"x");
    }
}
