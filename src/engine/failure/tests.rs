//! An engine whose kernel lies: what it tells then, and what it keeps.

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

/// An engine with something of everything: what a failure finds.
struct Scene {
    engine: Engine,
    listener: ListenerId,
    addr: SocketAddr,
    /// Accepted ones, one that sends, one that fills, one that is paused, one that connects.
    conns: Vec<ConnId>,
    sends: ConnId,
    clients: Vec<TcpStream>,
    _peers: Vec<UnixStream>,
}

/// `None`, and it says why, if this machine has no io_uring.
fn scene() -> Option<Scene> {
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
    // More than a socket holds: part of it stays in flight.
    for _ in 0..10 {
        engine.poll(&mut out, Some(Duration::from_millis(1))).unwrap();
    }
    assert!(engine.queued_bytes(sends).unwrap() > 0);
    let connects = engine.connect(addr, ConnectOptions::default()).unwrap();
    engine.send(connects, "five.").unwrap();
    conns.extend([sends, fills, paused, connects]);
    engine.timer_after(Duration::from_millis(1), 1).unwrap();
    Some(Scene { engine, listener, addr, conns, sends, clients, _peers: peers })
}

fn ring(engine: &mut Engine) -> &mut Uring {
    match &mut *engine.backend {
        AnyBackend::Uring(ring) => ring,
        _ => unreachable!("it was asked for"),
    }
}

/// Polls, with little room, until the engine has told all.
fn told(engine: &mut Engine, capacity: usize) -> Vec<Completion> {
    let (mut out, mut all) = (Completions::with_capacity(capacity), Vec::new());
    let deadline = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < deadline, "a failed engine comes to its end: {all:?}");
        let polled = engine.poll(&mut out, Some(Duration::from_millis(10)));
        engine.audit().unwrap();
        match polled {
            Ok(_) => all.extend(out.drain()),
            Err(Error::EngineFailed(_)) if out.is_empty() => return all,
            Err(error) => panic!("{error}, with {out:?} to tell"),
        }
    }
}

fn assert_failed(scene: &mut Scene, all: &[Completion]) {
    let Scene { engine, listener, addr, conns, .. } = scene;
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
    engine.poll(&mut Completions::with_capacity(1), None).expect_err("for ever");
}

fn drop_without_waiting(scene: Scene) {
    let (leaked, start) = (leaked_engines(), Instant::now());
    drop(scene);
    assert!(leaked_engines() > leaked, "what a kernel that lies may still use is never freed");
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
}

#[test]
fn an_impossible_completion_fails_the_engine_as_a_whole() {
    for capacity in [1, 256] {
        let Some(mut scene) = scene() else { return };
        let conn = scene.conns[0];
        ring(&mut scene.engine).lie_about_a_close(conn.0);
        let all = told(&mut scene.engine, capacity);
        let unsent = |conn: ConnId| {
            all.iter().find_map(|c| match c.event {
                Event::Closed(reason) if c.conn == conn => Some(reason.unsent_bytes),
                _ => None,
            })
        };
        assert!(unsent(scene.sends).is_some_and(|bytes| bytes > 0));
        assert_failed(&mut scene, &all);
        drop_without_waiting(scene);
    }
}

#[test]
fn a_send_of_more_than_there_was_fails_the_engine_too() {
    let Some(mut scene) = scene() else { return };
    let (sends, queued) = (scene.sends, scene.engine.queued_bytes(scene.sends).unwrap());
    ring(&mut scene.engine).lie_about_a_send(sends.0);
    let all = told(&mut scene.engine, 3);
    let unsent =
        |c: &Completion| matches!(c.event, Event::Closed(r) if r.unsent_bytes == queued as u64);
    assert!(
        all.iter().any(|c| c.conn == sends && unsent(c)),
        "what is queued is not taken for sent"
    );
    assert_failed(&mut scene, &all);
    drop_without_waiting(scene);
}

#[test]
fn what_was_told_before_comes_first() {
    let Some(mut scene) = scene() else { return };
    let (conn, engine) = (scene.conns[0], &mut scene.engine);
    let client = scene
        .clients
        .iter_mut()
        .find(|c| engine.peer_addr(conn).unwrap() == c.local_addr().unwrap().into());
    let client = client.expect("it was accepted");
    // With a budget of one and little room most of what is received in one turn waits to be
    // told.
    let (mut out, mut got) = (Completions::with_capacity(2), Vec::new());
    let deadline = Instant::now() + SOON;
    let waiting = |engine: &Engine| engine.core.delivery.count(|key| key == conn.0);
    while waiting(engine) < 3 {
        assert!(Instant::now() < deadline, "several buffers are filled at once");
        client.write_all(&[got.len() as u8; 640]).unwrap();
        engine.poll(&mut out, Some(Duration::from_millis(10))).unwrap();
        got.extend(out.drain());
    }
    let waiting = waiting(engine);
    ring(engine).lie_about_a_close(conn.0);
    assert!(engine.wants_poll());
    let all = told(engine, 1);
    let of_conn: Vec<&Event> = all.iter().filter(|c| c.conn == conn).map(|c| &c.event).collect();
    assert_eq!(of_conn.len(), waiting + 1);
    assert!(of_conn[..waiting].iter().all(|event| matches!(event, Event::Received(_))));
    let last_data = all.iter().rposition(|c| matches!(c.event, Event::Received(_)));
    let listener = all.iter().position(|c| matches!(c.event, Event::ListenerClosed { .. }));
    assert!(last_data < listener, "nothing of a listener overtakes anything");
    assert_failed(&mut scene, &all);
    drop_without_waiting(scene);
}

/// Bytes whose owner counts its drop, and panics.
struct Bomb(Arc<AtomicUsize>);

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        b"bomb"
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        resume_unwind(Box::new("the owner of a payload panics"));
    }
}

#[test]
fn payloads_that_have_left_are_dropped_after_a_failure_too() {
    let Some(mut scene) = scene() else { return };
    let conn = scene.conns[0];
    ring(&mut scene.engine).lie_about_a_close(conn.0);
    let all = told(&mut scene.engine, 256);
    // As if they had been sent in the last turn.
    let (dropped, memory) = (Arc::new(AtomicUsize::new(0)), &mut scene.engine.core.send_memory);
    (0..2).for_each(|_| memory.retire(Bytes::from_owner(Bomb(Arc::clone(&dropped))).into()));
    let mut out = Completions::with_capacity(1);
    for count in 1..=2 {
        let poll = catch_unwind(AssertUnwindSafe(|| scene.engine.poll(&mut out, None).is_ok()));
        assert!(poll.is_err() && scene.engine.wants_poll());
        assert_eq!(dropped.load(Ordering::Relaxed), count);
    }
    assert!(matches!(scene.engine.poll(&mut out, None), Err(Error::EngineFailed(_))));
    assert_failed(&mut scene, &all);
    drop_without_waiting(scene);
}

#[test]
fn a_lie_during_the_drop_is_no_panic() {
    let Some(mut scene) = scene() else { return };
    let conn = scene.conns[0];
    ring(&mut scene.engine).lie_about_a_close(conn.0);
    drop_without_waiting(scene);
}
