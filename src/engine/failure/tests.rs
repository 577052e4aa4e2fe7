//! Engines whose kernel reports something impossible: injected CQEs. Checks the events, the errors
//! and the memory of such an engine.

use crate::backend::AnyBackend;
use crate::backend::uring::Uring;
use crate::completion::{CloseKind, Completion, Completions, Event};
use crate::config::Config;
use crate::engine::{AdoptedId, Engine, leaked_engines};
use crate::error::Error;
use crate::error::SendError;
use crate::id::{ConnId, ListenerId};
use crate::options::{ConnectOptions, ListenOptions, SocketOptions};
use crate::tier::Backend;
use crate::tuning::Tuning;
use bytes::{Bytes, BytesMut};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// An engine with a connection in each relevant state, before its failure.
struct Fixture {
    engine: Engine,
    listener: ListenerId,
    addr: SocketAddr,
    /// Three accepted connections, then one each that sends, receives into a buffer, is paused, and
    /// is connecting.
    conns: Vec<ConnId>,
    sends: ConnId,
    clients: Vec<TcpStream>,
    _peers: Vec<UnixStream>,
}

/// `None`, and the reason is printed, if this machine has no io_uring.
fn fixture() -> Option<Fixture> {
    let config = Config::default()
        .ignore_environment(true)
        .backend(Backend::Uring)
        .tuning(Tuning::default().budget(1))
        .buffers(64, 64);
    let mut engine = match Engine::new(config) {
        Ok(engine) => engine,
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    };
    let listener = engine.listen(([127, 0, 0, 1], 0), ListenOptions::default()).unwrap();
    let addr = engine.listener_addr(listener).unwrap().as_inet().unwrap();
    let clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let mut conns = Vec::new();
    let mut out = Completions::with_capacity(16);
    let deadline = Instant::now() + SOON;
    while conns.len() < 3 {
        assert!(Instant::now() < deadline, "three clients are accepted");
        engine.poll(&mut out, Some(Duration::from_millis(20))).unwrap();
        conns.extend(out.drain().map(|completion| completion.conn));
    }
    let mut peers = Vec::new();
    let mut adopt = |engine: &mut Engine| {
        let (near, far) = UnixStream::pair().unwrap();
        peers.push(far);
        match engine.adopt(near.into(), SocketOptions::default()).unwrap() {
            AdoptedId::Conn(conn) => conn,
            AdoptedId::Listener(_) => unreachable!(),
        }
    };
    let sends = adopt(&mut engine);
    engine.send(sends, vec![7; 8 << 20]).unwrap();
    let fills = adopt(&mut engine);
    engine.recv_into(fills, BytesMut::new(), 1000).unwrap();
    let paused = adopt(&mut engine);
    engine.pause_reads(paused).unwrap();
    // The payload is larger than the socket's send buffer: a part of it stays in flight.
    for _ in 0..10 {
        engine.poll(&mut out, Some(Duration::from_millis(1))).unwrap();
    }
    assert!(engine.queued_bytes(sends).unwrap() > 0);
    let connects = engine.connect(addr, ConnectOptions::default()).unwrap();
    engine.send(connects, "five.").unwrap();
    conns.extend([sends, fills, paused, connects]);
    engine.timer_after(Duration::from_millis(1), 1).unwrap();
    Some(Fixture { engine, listener, addr, conns, sends, clients, _peers: peers })
}

fn ring(engine: &mut Engine) -> &mut Uring {
    match &mut *engine.backend {
        AnyBackend::Uring(ring) => ring,
        _ => unreachable!("the configuration requires io_uring"),
    }
}

/// Polls until all events are delivered, `capacity` of them at most per poll.
fn poll_until_failed(engine: &mut Engine, capacity: usize) -> Vec<Completion> {
    let (mut out, mut all) = (Completions::with_capacity(capacity), Vec::new());
    let deadline = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < deadline, "a failed engine delivers its last event: {all:?}");
        let polled = engine.poll(&mut out, Some(Duration::from_millis(10)));
        engine.audit().unwrap();
        match polled {
            Ok(_) => all.extend(out.drain()),
            Err(Error::EngineFailed(_)) if out.is_empty() => return all,
            Err(error) => panic!("{error}, with {out:?} delivered"),
        }
    }
}

fn assert_failed(fixture: &mut Fixture, all: &[Completion]) {
    let Fixture { engine, listener, addr, conns, .. } = fixture;
    for conn in &*conns {
        let of_conn: Vec<&Event> =
            all.iter().filter(|c| c.conn == *conn).map(|c| &c.event).collect();
        let closed = of_conn.iter().filter(|event| matches!(event, Event::Closed(_))).count();
        assert_eq!(closed, 1, "{conn}: {of_conn:?}");
        let Some(Event::Closed(reason)) = of_conn.last() else { panic!("{conn}: {of_conn:?}") };
        assert_eq!((reason.kind, reason.errno), (CloseKind::Failed, None));
        assert!(!engine.is_live(*conn) && engine.fd(*conn).is_none());
        let stale = |error| matches!(error, Error::Stale | Error::EngineFailed(_));
        assert!(engine.close(*conn).is_err_and(stale) && engine.abort(*conn).is_err_and(stale));
        assert!(
            engine.pause_reads(*conn).is_err_and(stale)
                && engine.resume_reads(*conn).is_err_and(stale)
        );
        assert!(engine.recv_into(*conn, BytesMut::new(), 1).is_err_and(stale));
        assert!(
            engine.release(*conn).is_err_and(stale) && engine.peer_addr(*conn).is_err_and(stale)
        );
        assert!(matches!(engine.send(*conn, "more"), Err(SendError::Stale(_))));
    }
    let ended = |c: &&Completion| match c.event {
        Event::ListenerClosed { listener: ended, .. } => ended == *listener,
        _ => false,
    };
    assert_eq!(all.iter().filter(ended).count(), 1);
    let failed = |error: Error| {
        matches!(error, Error::EngineFailed(_)) && error.to_string().contains("has failed")
    };
    assert!(engine.connect(*addr, ConnectOptions::default()).is_err_and(failed));
    assert!(engine.listen(([127, 0, 0, 1], 0), ListenOptions::default()).is_err_and(failed));
    assert!(
        engine
            .adopt(UnixStream::pair().unwrap().0.into(), SocketOptions::default())
            .is_err_and(failed)
    );
    assert!(
        engine.close_listener(*listener).is_err_and(failed)
            && engine.listener_addr(*listener).is_err_and(failed)
    );
    assert!(
        engine.timer_after(Duration::ZERO, 1).is_err_and(failed)
            && engine.as_fd().is_err_and(failed)
    );
    assert_eq!((engine.timers(), engine.connections(), engine.wants_poll()), (0, 0, false));
    let (stats, closed) = (engine.stats(), |c: &&Completion| matches!(c.event, Event::Closed(_)));
    assert_eq!(
        (stats.kernel_violations, stats.closed),
        (1, all.iter().filter(closed).count() as u64)
    );
    engine.close_all(Duration::ZERO);
    assert!(engine.is_closed());
    engine.audit().unwrap();
    engine.poll(&mut Completions::with_capacity(1), None).expect_err("the engine has failed");
}

fn assert_drop_does_not_wait(fixture: Fixture) {
    let (leaked, start) = (leaked_engines(), Instant::now());
    drop(fixture);
    assert!(leaked_engines() > leaked, "memory that the kernel may still use is not freed");
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
}

#[test]
fn an_impossible_completion_fails_the_engine_as_a_whole() {
    for capacity in [1, 256] {
        let Some(mut fixture) = fixture() else { return };
        let conn = fixture.conns[0];
        ring(&mut fixture.engine).inject_close_completion(conn.0);
        let all = poll_until_failed(&mut fixture.engine, capacity);
        let unsent = |conn: ConnId| {
            all.iter().find_map(|c| match c.event {
                Event::Closed(reason) if c.conn == conn => Some(reason.unsent_bytes),
                _ => None,
            })
        };
        assert!(unsent(fixture.sends).is_some_and(|bytes| bytes > 0));
        assert_failed(&mut fixture, &all);
        assert_drop_does_not_wait(fixture);
    }
}

#[test]
fn a_send_result_beyond_its_length_fails_the_engine() {
    let Some(mut fixture) = fixture() else { return };
    let (sends, queued) = (fixture.sends, fixture.engine.queued_bytes(fixture.sends).unwrap());
    ring(&mut fixture.engine).inject_send_completion(sends.0);
    let all = poll_until_failed(&mut fixture.engine, 3);
    let unsent =
        |c: &Completion| matches!(c.event, Event::Closed(r) if r.unsent_bytes == queued as u64);
    assert!(
        all.iter().any(|c| c.conn == sends && unsent(c)),
        "the queued bytes are reported as unsent"
    );
    assert_failed(&mut fixture, &all);
    assert_drop_does_not_wait(fixture);
}

#[test]
fn deferred_events_are_delivered_before_the_failure() {
    let Some(mut fixture) = fixture() else { return };
    let (conn, engine) = (fixture.conns[0], &mut fixture.engine);
    let client = fixture
        .clients
        .iter_mut()
        .find(|c| engine.peer_addr(conn).unwrap() == c.local_addr().unwrap().into());
    let client = client.expect("the client was accepted");
    // The budget is one event per turn and the buffer is small, so most events are deferred.
    let (mut out, mut got) = (Completions::with_capacity(2), Vec::new());
    let deadline = Instant::now() + SOON;
    let deferred = |engine: &Engine| engine.core.delivery.count(|key| key == conn.0);
    while deferred(engine) < 3 {
        assert!(Instant::now() < deadline, "several buffers are received in one turn");
        client.write_all(&[got.len() as u8; 640]).unwrap();
        engine.poll(&mut out, Some(Duration::from_millis(10))).unwrap();
        got.extend(out.drain());
    }
    let deferred = deferred(engine);
    ring(engine).inject_close_completion(conn.0);
    assert!(engine.wants_poll());
    let all = poll_until_failed(engine, 1);
    let of_conn: Vec<&Event> = all.iter().filter(|c| c.conn == conn).map(|c| &c.event).collect();
    assert_eq!(of_conn.len(), deferred + 1);
    assert!(of_conn[..deferred].iter().all(|event| matches!(event, Event::Received(_))));
    let last_data = all.iter().rposition(|c| matches!(c.event, Event::Received(_)));
    let listener = all.iter().position(|c| matches!(c.event, Event::ListenerClosed { .. }));
    assert!(last_data < listener, "events of a listener follow all deferred events");
    assert_failed(&mut fixture, &all);
    assert_drop_does_not_wait(fixture);
}

/// The owner of a payload, whose drop counts and panics.
struct PanicOnDrop(Arc<AtomicUsize>);

impl AsRef<[u8]> for PanicOnDrop {
    fn as_ref(&self) -> &[u8] {
        b"payload"
    }
}

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        resume_unwind(Box::new("the drop of a payload panics"));
    }
}

#[test]
fn retired_payloads_are_dropped_after_a_failure() {
    let Some(mut fixture) = fixture() else { return };
    let conn = fixture.conns[0];
    ring(&mut fixture.engine).inject_close_completion(conn.0);
    let all = poll_until_failed(&mut fixture.engine, 256);
    // Two payloads as if they had been sent in the last turn.
    let (dropped, memory) = (Arc::new(AtomicUsize::new(0)), &mut fixture.engine.core.send_memory);
    (0..2).for_each(|_| memory.retire(Bytes::from_owner(PanicOnDrop(Arc::clone(&dropped))).into()));
    let mut out = Completions::with_capacity(1);
    for count in 1..=2 {
        let poll = catch_unwind(AssertUnwindSafe(|| fixture.engine.poll(&mut out, None).is_ok()));
        assert!(poll.is_err() && fixture.engine.wants_poll());
        assert_eq!(dropped.load(Ordering::Relaxed), count);
    }
    assert!(matches!(fixture.engine.poll(&mut out, None), Err(Error::EngineFailed(_))));
    assert_failed(&mut fixture, &all);
    assert_drop_does_not_wait(fixture);
}

#[test]
fn an_impossible_completion_during_the_drop_does_not_panic() {
    let Some(mut fixture) = fixture() else { return };
    let conn = fixture.conns[0];
    ring(&mut fixture.engine).inject_close_completion(conn.0);
    assert_drop_does_not_wait(fixture);
}
