//! Drops of an engine at any moment, and forks. A scenario brings the engine into a state and drops
//! it; the suite checks descriptors, threads and leaked engines afterwards.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use crate::timing::readable;
use bytes::{Bytes, BytesMut};
use proactor::*;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
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
    // Data is in flight, or in buffers of completions that were not reaped.
    drop(rig);
    for peer in &mut peers {
        let mut byte = [0];
        assert!(!matches!(peer.read(&mut byte), Ok(1..)), "the connection is closed");
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
    assert!(connect(addr).is_err(), "the listener is closed");
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
    let mut rig = Rig::with(variant.config().tuning(zero_copy(4096)));
    let (conn, peer) = rig.pair();
    for _ in 0..20 {
        let _ = rig.engine.send(conn, vec![1; 100_000]);
    }
    rig.poll(Duration::from_millis(20));
    // On loopback the notification comes when the peer has read or closed.
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

/// Runs `act` in a forked child. Fails if it returns an error, crashes or hangs.
fn in_child(act: impl FnOnce() -> Result<(), String>) {
    // SAFETY: this process has one thread, so the child may call any function (fork(2)).
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SIGALRM ends a child that hangs.
        // SAFETY: takes no pointer.
        unsafe { libc::alarm(60) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        let status = match result {
            Ok(Ok(())) => 0,
            Ok(Err(why)) => {
                eprintln!("in the child: {why}");
                1
            }
            Err(_) => 2,
        };
        // SAFETY: takes no pointer. It runs no exit handlers, which belong to the parent.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: the status outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed (see above), or crashed");
}

/// Checks that data passes in both directions, enough to use each receive buffer again.
fn check_round_trip(rig: &mut Rig, conn: ConnId, peer: &mut Peer) {
    let sent = pattern(2 << 20);
    let (mut writer, to_send) = (peer.try_clone().unwrap(), sent.clone());
    let writer = spawn(move || writer.write_all(&to_send).unwrap());
    assert!(rig.receive(conn, sent.len()) == sent, "the bytes that the peer sent");
    writer.join().unwrap();
    rig.engine.send(conn, "response").unwrap();
    rig.run("the send", |engine, _| engine.queued_bytes(conn).unwrap() == 0);
    let mut response = [0; 8];
    peer.read_exact(&mut response).unwrap();
    assert_eq!(&response, b"response");
    assert_eq!(rig.engine.audit(), Ok(()));
}

pub fn fork_in_the_middle(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    peer.write_all(b"a").unwrap();
    let lease = rig.next_lease();
    let mut parts = Some((rig, lease));
    in_child(|| {
        let (mut rig, lease) = parts.take().expect("the child's copy");
        let refused = matches!(
            rig.engine.poll(&mut rig.completions, Some(Duration::ZERO)),
            Err(Error::Forked)
        );
        let intact = lease[..] == b"a"[..];
        drop(lease);
        drop(rig);
        if refused && intact {
            Ok(())
        } else {
            Err(format!("refused: {refused}, lease intact: {intact}"))
        }
    });
    let (mut rig, lease) = parts.expect("only the child takes it");
    check_round_trip(&mut rig, conn, &mut peer);
    drop(lease);
}

/// Ids of the parent's engine that the child has.
#[derive(Clone, Copy)]
struct Ids {
    conn: ConnId,
    listener: ListenerId,
    timer: TimerId,
}

/// A public call, and whether it returned the right result in a child.
type Call = (&'static str, fn(&mut Engine, Ids) -> bool);

const CALLS_IN_A_CHILD: &[Call] = &[
    ("poll", |e, _| forked(e.poll(&mut Completions::with_capacity(4), None))),
    ("as_fd", |e, _| forked(e.as_fd())),
    ("audit", |e, _| e.audit() == Err(Error::Forked.to_string())),
    ("connect", |e, _| forked(e.connect(([127, 0, 0, 1], 9), ConnectOptions::default()))),
    ("listen", |e, _| forked(e.listen(([127, 0, 0, 1], 0), ListenOptions::default()))),
    ("adopt", |e, _| {
        forked(e.adopt(
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            SocketOptions::default(),
        ))
    }),
    ("release", |e, known| forked(e.release(known.conn))),
    ("close", |e, known| forked(e.close(known.conn))),
    ("abort", |e, known| forked(e.abort(known.conn))),
    ("close_listener", |e, known| forked(e.close_listener(known.listener))),
    ("listener_addr", |e, known| forked(e.listener_addr(known.listener))),
    ("pause_reads", |e, known| forked(e.pause_reads(known.conn))),
    ("resume_reads", |e, known| forked(e.resume_reads(known.conn))),
    ("recv_into", |e, known| forked(e.recv_into(known.conn, BytesMut::new(), 1))),
    ("shutdown_write", |e, known| forked(e.shutdown_write(known.conn))),
    ("queued_bytes", |e, known| forked(e.queued_bytes(known.conn))),
    ("set_tag", |e, known| forked(e.set_tag(known.conn, 7))),
    ("tag", |e, known| forked(e.tag(known.conn))),
    ("peer_addr", |e, known| forked(e.peer_addr(known.conn))),
    ("local_addr", |e, known| forked(e.local_addr(known.conn))),
    ("timer_after", |e, _| forked(e.timer_after(Duration::ZERO, 0))),
    ("timer_at", |e, _| forked(e.timer_at(now(), 0))),
    ("send", |e, known| payload_returned(e.send(known.conn, "child"))),
    ("send_tagged", |e, known| payload_returned(e.send_tagged(known.conn, "child", 1))),
    ("write", |e, known| e.write(known.conn, b"child") == Err(WriteError::Forked)),
    ("timer_cancel", |e, known| !e.timer_cancel(known.timer)),
    ("timer_reset", |e, known| !e.timer_reset(known.timer, Duration::ZERO)),
    ("timers", |e, _| e.timers() == 0),
    ("wants_poll", |e, _| !e.wants_poll()),
    ("free_buffers", |e, _| e.free_buffers() == 0),
    ("connections", |e, _| e.connections() == 0),
    ("is_live", |e, known| !e.is_live(known.conn)),
    ("fd", |e, known| e.fd(known.conn).is_none()),
    ("close_all", |e, _| {
        e.close_all(Duration::ZERO);
        e.is_closed()
    }),
    ("stats", |e, _| e.stats().turns > 0),
    ("info", |e, _| e.info().buffers.0 > 0),
    ("now", |e, _| e.now() <= now()),
    ("Debug", |e, _| !format!("{e:?}").is_empty()),
    ("waker", |e, _| {
        e.waker().wake();
        true
    }),
];

fn forked<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Forked))
}

fn payload_returned(result: Result<(), SendError>) -> bool {
    result.is_err_and(|error| {
        matches!(error, SendError::Forked(_)) && error.into_payload().as_slice() == b"child"
    })
}

pub fn fork_refuses_every_call(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let (listener, _) = rig.listen();
    let timer = rig.engine.timer_after(Duration::from_secs(3600), 1).unwrap();
    rig.poll(Duration::from_millis(5));
    let known = Ids { conn, listener, timer };
    for (name, call) in CALLS_IN_A_CHILD {
        in_child(|| {
            if call(&mut rig.engine, known) { Ok(()) } else { Err(format!("{name}: wrong result")) }
        });
    }
    // All calls on one engine.
    in_child(|| {
        let wrong: Vec<_> =
            CALLS_IN_A_CHILD.iter().filter(|(_, call)| !call(&mut rig.engine, known)).collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", wrong.iter().map(|call| call.0).collect::<Vec<_>>()))
        }
    });
    assert!(rig.engine.timer_cancel(timer) && rig.engine.is_live(conn) && !rig.engine.is_closed());
    check_round_trip(&mut rig, conn, &mut peer);
}

/// Bytes whose owner sets a flag when it is dropped.
struct DropFlag(&'static AtomicBool);

impl AsRef<[u8]> for DropFlag {
    fn as_ref(&self) -> &[u8] {
        b"flag"
    }
}

impl Drop for DropFlag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub fn fork_drops_nothing(variant: &Variant) {
    const PAGE: usize = 4096;
    static DROPPED: AtomicBool = AtomicBool::new(false);
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.engine.as_fd().unwrap();
    rig.poll(Duration::from_millis(5));
    rig.engine.send(conn, Bytes::from_owner(DropFlag(&DROPPED))).unwrap();
    let mut parts = Some(rig);
    in_child(|| {
        let rig = parts.take().expect("the child's copy");
        let descriptors = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // The rings are not mapped in the child, so the kernel may map new memory at their
        // addresses.
        let map = || {
            let (flags, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ);
            // SAFETY: maps new memory at an address that the kernel chooses.
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, flags, -1, 0) }
        };
        let pages: Vec<_> = (0..64).map(|_| map()).collect();
        assert!(!pages.contains(&libc::MAP_FAILED), "mmap");
        // SAFETY: takes no pointer.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        assert!(event >= 0, "eventfd");
        let open = descriptors();
        drop(rig);
        // write(2) fails with EFAULT where nothing is mapped. (Filters forbid mincore(2).)
        // SAFETY: the kernel checks the address, and reads eight bytes.
        let mapped = |page: &*mut libc::c_void| unsafe { libc::write(event, *page, 8) } == 8;
        let unmapped = pages.len() - pages.iter().copied().filter(mapped).count();
        let (closed, dropped) = (open - descriptors(), DROPPED.load(Ordering::Relaxed));
        match (unmapped, closed, dropped) {
            (0, 0, false) => Ok(()),
            _ => Err(format!(
                "{unmapped} pages unmapped, {closed} descriptors closed, payload dropped: {dropped}"
            )),
        }
    });
    let mut rig = parts.expect("only the child takes it");
    rig.run("the send", |_, _| DROPPED.load(Ordering::Relaxed));
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"flag");
    check_round_trip(&mut rig, conn, &mut peer);
}

pub fn fork_makes_its_own_engine(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    rig.poll(Duration::from_millis(5));
    let mut parts = Some(rig);
    in_child(|| {
        let inherited = parts.take().expect("the child's copy");
        let mut own = Rig::new(variant);
        let (conn, mut peer) = own.pair();
        check_round_trip(&mut own, conn, &mut peer);
        drop(inherited);
        check_round_trip(&mut own, conn, &mut peer);
        drop(own);
        let mut own = Rig::new(variant);
        let (conn, mut peer) = own.pair();
        check_round_trip(&mut own, conn, &mut peer);
        Ok(())
    });
    let mut rig = parts.expect("only the child takes it");
    check_round_trip(&mut rig, conn, &mut peer);
}

pub fn fork_does_not_wake_the_parent(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let waker = rig.engine.waker();
    // From now on each `wake` writes to the eventfd, which the child shares.
    let fd = rig.engine.as_fd().unwrap().as_raw_fd();
    while !rig.poll(Duration::from_millis(5)).is_empty() {}
    assert!(!readable(fd, Duration::ZERO));
    in_child(|| {
        waker.wake();
        Ok(())
    });
    assert!(!readable(fd, Duration::from_millis(50)), "the child woke its parent");
    waker.wake();
    assert!(readable(fd, patience()));
    rig.until("the wake-up", |_, completion| {
        matches!(completion.event, Event::Woken).then_some(())
    });
    check_round_trip(&mut rig, conn, &mut peer);
}

pub fn engines_in_a_row(variant: &Variant) {
    // A thread can register sixteen rings (io_uring_register_ring_fd(3)). A dropped engine must
    // unregister its ring.
    let uses = |engine: &Engine| {
        let used = |report: &&CapabilityReport| report.state == CapabilityState::Used;
        engine
            .info()
            .capabilities()
            .iter()
            .filter(used)
            .map(|report| report.capability)
            .collect::<Vec<_>>()
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
