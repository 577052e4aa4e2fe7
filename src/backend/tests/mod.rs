//! A random engine, run against each backend.
//!
//! From a seed, [`RandomEngine`] starts, cancels, swaps, drops and abandons operations and their
//! memory, as far as safe code allows. It keeps only what backends assert: rule 3 of the contract
//! (one operation of a kind, none at a close) and rule 4 (no use of a key after its close). The
//! tests check that peers receive only bytes of some payload, that received bytes do not change
//! while they are held, and that each operation ends exactly once. AddressSanitizer finds invalid
//! accesses that these checks miss:
//!
//! ```text
//! RUSTFLAGS=-Zsanitizer=address cargo +nightly test --target x86_64-unknown-linux-gnu
//! ```
//!
//! A [`Rig`] connects a backend to the engine; see `rigs.rs`.

mod memory;
mod rigs;

use super::{
    Backend, CloseMode, Completed, Connect, OpKind, Open, Operation, Outcome, Parameters,
    SendBatch, Side, Started,
};
use crate::buf::{Lease, Payload, RecvBuf, RecvBufPool, SendMemory};
use crate::error::Error;
use crate::id::{EngineNumberGuard, Key};
use crate::net::Addr;
use crate::options::{ConnectOptions, ListenOptions};
use crate::table::Table;
use bytes::BytesMut;
use memory::{DROPPED_MEMORY, Rng, Snapshot, check};
use rigs::Rig;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

const SEEDS: u64 = 200;

/// Runs all seeds, or the one that `PROACTOR_SEED` names.
fn run_seeds<R: Rig>(mut rig: R) -> Option<Counts> {
    let one = std::env::var("PROACTOR_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds = one.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let mut counts = Counts::default();
    for seed in seeds {
        let _report = SeedReport(seed);
        let mut engine = RandomEngine::new(&mut rig, Rng::new(seed), &mut counts)?;
        engine.run();
        drop(engine);
        DROPPED_MEMORY.take();
    }
    eprintln!("{counts:?}");
    if one.is_none() {
        let least = counts.sent.min(counts.received).min(counts.filled).min(counts.peer_received);
        assert!(least > 500 && counts.accepted > 100 && counts.cancelled_all > 10, "{counts:?}");
    }
    Some(counts)
}

/// Prints the seed if a panic unwinds.
struct SeedReport(u64);

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with PROACTOR_SEED={}", self.0);
        }
    }
}

/// How often things happened, over all seeds.
#[derive(Debug, Default)]
struct Counts {
    sent: usize,
    received: usize,
    filled: usize,
    peer_received: usize,
    accepted: usize,
    released: usize,
    cancelled: usize,
    no_room: usize,
    cancelled_all: usize,
    early_sends: u64,
}

const KINDS: [OpKind; 6] =
    [OpKind::Connect, OpKind::Accept, OpKind::Recv, OpKind::Send, OpKind::Hangup, OpKind::Close];

struct Conn<P> {
    /// By [`OpKind`].
    in_flight: [bool; KINDS.len()],
    peer: Option<P>,
    listens: bool,
    /// The connect has completed.
    connected: bool,
    abandoned: bool,
}

impl<P> Conn<P> {
    fn new(peer: Option<P>, listens: bool, connected: bool) -> Conn<P> {
        Conn { in_flight: [false; KINDS.len()], peer, listens, connected, abandoned: false }
    }

    fn is_idle(&self) -> bool {
        self.in_flight == [false; KINDS.len()]
    }
}

#[expect(clippy::vec_box, reason = "the boxes are what operations own")]
struct RandomEngine<'a, R: Rig> {
    rig: &'a mut R,
    rng: Rng,
    counts: &'a mut Counts,
    /// Dropped first, and before the end of some runs.
    backend: Option<R::Backend>,
    conns: Table<Conn<R::Peer>>,
    listener: Option<Addr>,
    memory: SendMemory,
    recv_memory: RecvBufPool,
    /// Batches that came back, of all connections.
    batches: Vec<SendBatch>,
    recv_bufs: Vec<Box<RecvBuf>>,
    leases: Vec<Snapshot<Lease>>,
    buffers: Vec<Snapshot<BytesMut>>,
    released: Vec<Box<Payload>>,
    /// Peers of connections that are closed or released.
    peers: Vec<R::Peer>,
    fds: Vec<OwnedFd>,
    _number: EngineNumberGuard,
}

impl<'a, R: Rig> RandomEngine<'a, R> {
    fn new(rig: &'a mut R, mut rng: Rng, counts: &'a mut Counts) -> Option<Self> {
        let number = EngineNumberGuard::new();
        let buffers = (rng.pick(&[4, 16, 64]), rng.pick(&[256, 4096, 16384]));
        let backend = rig.make(Parameters {
            engine: number.number(),
            gather_max: rng.pick(&[1, 3, 64]),
            budget: rng.pick(&[1, 4, 32]),
            low_watermark: rng.pick(&[1, 2, buffers.0]),
            buffers,
            connections_reserved: 16,
        })?;
        Some(RandomEngine {
            rig,
            rng,
            counts,
            backend: Some(backend),
            conns: Table::new(number.number(), 16),
            listener: None,
            memory: SendMemory::default(),
            recv_memory: RecvBufPool::default(),
            batches: Vec::new(),
            recv_bufs: Vec::new(),
            leases: Vec::new(),
            buffers: Vec::new(),
            released: Vec::new(),
            peers: Vec::new(),
            fds: Vec::new(),
            _number: number,
        })
    }

    fn backend(&mut self) -> &mut R::Backend {
        self.backend.as_mut().expect("the backend is dropped at the end")
    }

    fn run(&mut self) {
        self.listen();
        let steps = 20 + self.rng.below(700);
        for _ in 0..steps {
            self.step();
        }
        self.counts.early_sends += self.backend().stats().early_sends;
        match self.rng.below(4) {
            0 => {}
            1 => self.drop_in_panic(),
            2 => drop(self.backend().shut_down(Duration::from_millis(1))),
            _ => self.cancel_all(),
        }
        self.backend = None;
        // Leases, payloads and peers outlive the backend.
        let conns: Vec<Key> = self.conns.keys().collect();
        for key in conns {
            let conn = self.conns.remove(key).expect("listed above");
            self.peers.extend(conn.peer);
        }
        for _ in 0..self.peers.len() * 2 {
            self.step_peer();
        }
        for _ in 0..40 {
            self.drop_something();
        }
        self.leases.iter().for_each(Snapshot::verify);
        self.buffers.iter().for_each(Snapshot::verify);
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..4 => self.open_pair(),
            4..7 => self.connect(),
            7..9 => self.accept(),
            9..36 => self.send(),
            36..52 => self.receive(),
            52..60 => self.cancel(),
            60..74 => self.step_peer(),
            74..88 => self.turn(),
            88..94 => self.drop_something(),
            94 => self.shut_down_output(),
            95..97 => self.close(),
            97 => self.swap_memory(),
            98 => self.abandon(),
            _ => self.release(),
        }
    }

    /// A random key without a close in flight.
    fn key(&mut self) -> Option<Key> {
        let usable =
            |conn: &Conn<R::Peer>| !conn.abandoned && !conn.in_flight[OpKind::Close as usize];
        let keys: Vec<Key> =
            self.conns.iter().filter(|(_, conn)| usable(conn)).map(|(key, _)| key).collect();
        (!keys.is_empty()).then(|| self.rng.pick(&keys))
    }

    /// A random key for which an operation of the kind can be started.
    fn key_for(&mut self, kind: OpKind) -> Option<Key> {
        let key = self.key()?;
        let conn = self.conns.get(key)?;
        let valid = conn.listens == (kind == OpKind::Accept) && conn.connected;
        (!conn.in_flight[kind as usize] && (valid || R::ACCEPTS_INVALID)).then_some(key)
    }

    fn listen(&mut self) {
        let key = self.conns.insert(Conn::new(None, true, true));
        let addr = "127.0.0.1:0".parse().unwrap();
        self.backend().open(key, Open::Listen(&addr, &ListenOptions::default())).unwrap();
        self.listener = Some(self.backend().addr(key, Side::Local).unwrap());
    }

    fn open_pair(&mut self) {
        if self.conns.len() < 10 {
            let key = self.conns.insert(Conn::new(None, false, true));
            let tcp = self.rng.chance(30);
            let backend = self.backend.as_mut().expect("the backend is dropped at the end");
            let peer = self.rig.pair(backend, key, tcp);
            self.conns.get_mut(key).expect("inserted above").peer = Some(peer);
        }
    }

    fn connect(&mut self) {
        let Some(addr) = self.listener.clone().filter(|_| self.conns.len() < 10) else { return };
        let early_payloads = <R::Backend as Backend>::EARLY_PAYLOADS_MAX;
        let batch = self.batch();
        let first = (self.rng.chance(70) && batch.entries() <= early_payloads).then_some(batch);
        let mut conn = Conn::new(None, false, false);
        conn.in_flight[OpKind::Send as usize] = first.is_some();
        conn.in_flight[OpKind::Connect as usize] = true;
        let key = self.conns.insert(conn);
        let connect = Connect { addr, options: ConnectOptions::default(), first };
        match self.backend().start(key, Operation::Connect(Box::new(connect))) {
            Started::InFlight => {}
            Started::NoRoom(operation) => {
                self.conns.remove(key);
                self.no_room(operation);
            }
            started => panic!("unexpected result of a connect: {started:?}"),
        }
    }

    fn accept(&mut self) {
        if let Some(key) = self.key_for(OpKind::Accept) {
            self.start(key, OpKind::Accept, Operation::Accept);
        }
    }

    fn send(&mut self) {
        if let Some(key) = self.key_for(OpKind::Send) {
            let batch = self.batch();
            self.start(key, OpKind::Send, Operation::Send(batch));
        }
    }

    fn receive(&mut self) {
        if self.rng.chance(20)
            && let Some(key) = self.key_for(OpKind::Hangup)
        {
            return self.start(key, OpKind::Hangup, Operation::WatchHangup);
        }
        let Some(key) = self.key_for(OpKind::Recv) else { return };
        let operation = match self.rng.chance(50) {
            true => Operation::Recv,
            false => Operation::RecvInto(self.recv_buf()),
        };
        self.start(key, OpKind::Recv, operation);
    }

    fn start(&mut self, key: Key, kind: OpKind, operation: Operation) {
        match self.backend().start(key, operation) {
            Started::InFlight => {
                self.conns.get_mut(key).expect("the key exists").in_flight[kind as usize] = true;
            }
            Started::NoRoom(operation) => self.no_room(operation),
            Started::Sent(batch, result) => {
                assert_eq!(kind, OpKind::Send);
                self.sent(batch, result);
            }
            Started::Done => panic!("{kind:?} completed without an outcome"),
        }
    }

    fn cancel(&mut self) {
        let Some(key) = self.key() else { return };
        let kind = self.rng.pick(&KINDS);
        let in_flight = self.conns.get(key).expect("the key exists").in_flight[kind as usize];
        self.counts.cancelled += usize::from(in_flight);
        self.backend().cancel(key, kind);
    }

    fn turn(&mut self) {
        self.rig.pass_time();
        let until = if self.rng.chance(4) { self.backend().now() + 50_000 } else { 0 };
        match self.backend().wait(Some(until)) {
            Ok(()) | Err(Error::Simulation(_)) => {}
            Err(error) => panic!("{error}"),
        }
        for _ in 0..self.rng.below(12) {
            let Some(completed) = self.backend().next() else { break };
            self.complete(completed);
        }
    }

    fn complete(&mut self, completed: Completed<<R::Backend as Backend>::Socket>) {
        let Completed { key, more, outcome } = completed;
        let ended = match &outcome {
            Outcome::Received(_) | Outcome::Accepted(_) if more => None,
            Outcome::Received(_) | Outcome::RecvEnded(_) | Outcome::Filled(..) => {
                Some(OpKind::Recv)
            }
            Outcome::Accepted(_) | Outcome::AcceptFailed(_) => Some(OpKind::Accept),
            Outcome::Sent(..) => Some(OpKind::Send),
            Outcome::HungUp(_) => Some(OpKind::Hangup),
            Outcome::Connected(_) => Some(OpKind::Connect),
            Outcome::Closed => Some(OpKind::Close),
            Outcome::Released(_) | Outcome::Woken => None,
        };
        if let Some(kind) = ended {
            let conn = self.conns.get_mut(key).expect("a key exists until its close");
            let in_flight = std::mem::take(&mut conn.in_flight[kind as usize]);
            assert!(in_flight, "a second final completion of {kind:?}");
        }
        match outcome {
            Outcome::Received(lease) => {
                check(&lease, "received");
                self.counts.received += 1;
                if self.rng.chance(70) && self.leases.len() < 50 {
                    self.leases.push(Snapshot::new(lease));
                }
            }
            Outcome::Filled(recv_buf, result) => {
                self.counts.filled += usize::from(result.get().is_ok_and(|len| len > 0));
                self.filled(recv_buf);
            }
            Outcome::Sent(batch, result) => self.sent(batch, result),
            Outcome::Released(payload) => {
                check(payload.as_slice(), "released");
                self.counts.released += 1;
                if self.rng.chance(60) {
                    self.released.push(payload);
                }
            }
            Outcome::Connected(result) => {
                let conn = self.conns.get_mut(key).expect("a key exists until its close");
                conn.connected = result.is_ok();
            }
            Outcome::Accepted(socket) => {
                self.counts.accepted += 1;
                if self.rng.chance(80) && self.conns.len() < 16 {
                    let key = self.conns.insert(Conn::new(None, false, true));
                    if self.backend().open(key, Open::Accepted(socket)).is_err() {
                        self.conns.remove(key);
                    }
                }
            }
            Outcome::Closed => {
                let conn = self.conns.remove(key).expect("checked above");
                self.peers.extend(conn.peer);
            }
            Outcome::RecvEnded(_)
            | Outcome::HungUp(_)
            | Outcome::AcceptFailed(_)
            | Outcome::Woken => {}
        }
    }

    fn step_peer(&mut self) {
        let conns = self.conns.keys().filter(|key| self.conns.get(*key).unwrap().peer.is_some());
        let keys: Vec<Key> = conns.collect();
        let peer = if !keys.is_empty() && self.rng.chance(80) {
            let key = self.rng.pick(&keys);
            if self.rng.chance(1) {
                self.conns.get_mut(key).expect("the key exists").peer = None;
                return;
            }
            self.conns
                .get_mut(key)
                .expect("the key exists")
                .peer
                .as_mut()
                .expect("the key has a peer")
        } else if self.peers.is_empty() {
            return;
        } else {
            let index = self.rng.below(self.peers.len());
            &mut self.peers[index]
        };
        let len = 1 + self.rng.below(30_000);
        if self.rng.chance(50) {
            let _ = peer.write(&vec![b'p'; len]);
        } else {
            let mut bytes = vec![0; len];
            let len = peer.read(&mut bytes).unwrap_or(0);
            check(&bytes[..len], "received by a peer");
            self.counts.peer_received += usize::from(len > 0);
        }
    }

    fn shut_down_output(&mut self) {
        if let Some(key) = self.key_for(OpKind::Send) {
            let started = self.backend().start(key, Operation::Shutdown);
            assert!(matches!(started, Started::Done | Started::NoRoom(_)), "{started:?}");
        }
    }

    fn close(&mut self) {
        if let Some(key) = self.key()
            && self.conns.get(key).expect("the key exists").is_idle()
        {
            let mode = self.rng.pick(&[CloseMode::Orderly, CloseMode::Reset]);
            self.start(key, OpKind::Close, Operation::Close(mode));
        }
    }

    /// Stops using a key, whose operations stay in flight.
    fn abandon(&mut self) {
        if self.conns.len() > 4
            && let Some(key) = self.key()
            && self.rng.chance(30)
        {
            self.conns.get_mut(key).expect("the key exists").abandoned = true;
        }
    }

    fn release(&mut self) {
        if let Some(key) = self.key()
            && let conn = self.conns.get(key).expect("the key exists")
            && conn.is_idle()
            && !conn.listens
            && let Ok(fd) = self.backend().release(key)
        {
            let conn = self.conns.remove(key).expect("the key exists");
            self.peers.extend(conn.peer);
            self.fds.push(fd);
        }
    }

    /// Drops the backend while a panic unwinds.
    fn drop_in_panic(&mut self) {
        let backend = self.backend.take();
        let caught = catch_unwind(AssertUnwindSafe(move || {
            let _backend = backend;
            resume_unwind(Box::new("a panic of the engine"));
        }));
        assert!(caught.is_err());
    }

    /// Cancels all operations, until each has ended.
    fn cancel_all(&mut self) {
        for _ in 0..2000 {
            let busy: Vec<Key> =
                self.conns.iter().filter(|(_, conn)| !conn.is_idle()).map(|(key, _)| key).collect();
            if busy.is_empty() {
                self.counts.cancelled_all += 1;
                return;
            }
            for key in busy {
                KINDS.into_iter().for_each(|kind| self.backend().cancel(key, kind));
            }
            self.turn();
            // A fault may delay the completion.
            self.rig.pass_time();
        }
        panic!("a cancelled operation did not end");
    }
}
