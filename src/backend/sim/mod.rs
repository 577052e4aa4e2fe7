//! The simulated backend: the same operations on a network in memory, in virtual time, with faults
//! drawn from a seed.
//!
//! This file owns: one engine's side of the simulation: its receive pool and the memory of its
//! operations in flight. Invariant: only the seed and the programs decide what happens: there is no
//! descriptor, system call, wall clock, random hash seed or address in it. Must not know: which
//! engine or peer is at the other end.
//!
//! | file | owns |
//! |---|---|
//! | `net` | hosts, links, the clock, the random numbers |
//! | `sock` `stream` `pipe` | simulated kernels: sockets, connections, bytes in flight |
//! | `op/` `engine_state` | operations of engines, and what is ready for each engine |
//! | `events` | what happens later, in order of time |
//! | `schedule` | which program runs |
//! | `faults` `script` `rng` `trace` | what goes wrong, when, and the record of it |
//! | `peer` | blocking sockets for tests |
//!
//! Data stays with its simulated socket until the engine takes it in [`Backend::next`], as on
//! epoll. Completions come late, early, in pieces or reordered as far as the fault plan says so.

mod engine_state;
mod events;
mod faults;
mod net;
mod op;
mod peer;
mod pipe;
mod rng;
mod schedule;
mod script;
mod sock;
mod stream;
mod trace;

use super::{
    Backend, Completed, OpKind, OpResult, Open, Operation, Outcome, Parameters, SendBatch, Side,
    Started,
};
use crate::buf::{Lease, Pool, RecvBuf};
use crate::error::{Errno, Error, Halt};
use crate::id::Key;
use crate::net::Addr;
use crate::stats::Stats;
use crate::waker::WakerShared;
use engine_state::Status;
pub use faults::{Fault, Faults};
pub use net::Link;
use op::{NetOutcome, Sink};
pub use peer::{Peer, PeerListener};
pub(crate) use schedule::{Shared, Until};
pub(crate) use script::Script;
use sock::{RecvTarget, SockId};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A buffer with less room than this is not filled further.
const ROOM_BYTES_MIN: u32 = 2048;

/// Deadlines from 146 years on count as none, so that adding delays to a deadline cannot overflow.
const NEVER: u64 = 1 << 62;

/// Nanoseconds, at most 36 years, so that sums of several cannot overflow.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(1 << 60)
}

/// An accepted connection without a key. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Accepted {
    world: Arc<Shared>,
    sock: SockId,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        if world
            .net
            .sock(self.sock)
            .is_some_and(|sock| matches!(sock.owner, sock::Owner::Accepted(_)))
        {
            world.net.close(self.sock, false);
        }
    }
}

/// The backend of one engine.
#[derive(Debug)]
pub(crate) struct Sim {
    world: Arc<Shared>,
    engine: u32,
    status: Arc<Status>,
    waker_shared: Arc<WakerShared>,
    epoch: Instant,
    buffers: Buffers,
    parameters: Parameters,
    stats: Stats,
    /// The deadline that the world has of this engine.
    deadline: Option<u64>,
}

/// The memory of the operations in flight, and the buffer of the receive that is being completed.
#[derive(Debug)]
struct Buffers {
    pool: Pool,
    /// The pool buffer that the next receive continues to fill.
    open: Option<u16>,
    /// Bytes of the receive that is being completed in `open`.
    filled: usize,
    /// The slot of the receive that is being completed, if that is into the caller's buffer.
    recv_into: Option<usize>,
    slots: Vec<SlotMemory>,
}

/// The memory of the operations in flight of a slot.
#[derive(Debug, Default)]
struct SlotMemory {
    batch: Option<SendBatch>,
    recv_buf: Option<Box<RecvBuf>>,
}

impl Buffers {
    fn slot(&mut self, key: Key) -> &mut SlotMemory {
        let index = key.slot();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, SlotMemory::default);
        }
        &mut self.slots[index]
    }
}

impl Sink for Buffers {
    fn room(&mut self, key: Key, target: RecvTarget) -> Option<usize> {
        match target {
            RecvTarget::Buffer(len) => {
                self.recv_into = Some(key.slot());
                Some(len)
            }
            RecvTarget::Pool => {
                self.recv_into = None;
                self.open = Some(self.open.or_else(|| self.pool.checkout())?);
                self.open.map(|id| self.pool.room(id).1 as usize)
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        match (self.recv_into, self.open) {
            (Some(slot), _) => self.copy_into(slot, bytes),
            (None, Some(id)) => {
                self.pool.write(id, self.filled, bytes);
                self.filled += bytes.len();
            }
            (None, None) => {}
        }
    }
}

impl Sim {
    pub(crate) fn new(
        world: Arc<Shared>,
        host: u32,
        parameters: Parameters,
        waker_shared: Arc<WakerShared>,
        epoch: Instant,
    ) -> Result<Sim, Error> {
        let (count, size) = parameters.buffers;
        let pool = Pool::new(count, size, parameters.low_watermark)
            .map_err(|error| Error::os("mmap", &error))?;
        let (engine, status) = {
            let net = &mut world.lock().net;
            if !net.hosts[host as usize].up {
                return Err(Error::Simulation(Halt::Crashed));
            }
            let engine = net.add_engine(host, Arc::clone(&waker_shared));
            (engine, Arc::clone(&net.engines[engine as usize].status))
        };
        let buffers = Buffers { pool, open: None, filled: 0, recv_into: None, slots: Vec::new() };
        Ok(Sim {
            world,
            engine,
            status,
            waker_shared,
            epoch,
            buffers,
            parameters,
            stats: Stats::default(),
            deadline: None,
        })
    }

    fn unsupported<T>(what: &str) -> Result<T, Error> {
        Err(Error::Unsupported {
            what: what.to_owned(),
            why: "the simulated backend has no descriptors".to_owned(),
        })
    }

    /// When the engine must be polled even if nothing completes.
    pub(crate) fn set_deadline(&mut self, deadline: Option<u64>) {
        let deadline = deadline.filter(|deadline| *deadline < NEVER);
        if deadline != self.deadline {
            self.deadline = deadline;
            let state = &mut self.world.lock().net.engines[self.engine as usize];
            state.deadline = deadline.filter(|_| !state.is_dead());
        }
    }

    /// True if that time has come.
    pub(crate) fn is_poll_due(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= self.world.now())
    }

    /// Starts an operation. False if the fault plan leaves no room for it.
    fn start_operation(&mut self, start: impl FnOnce(&mut net::Net, u32)) -> bool {
        if self.status.is_dead() {
            return true;
        }
        let mut world = self.world.lock();
        if world.net.check_queue(self.engine).is_err() {
            return false;
        }
        self.stats.sqes += 1;
        start(&mut world.net, self.engine);
        true
    }

    fn read_net<T>(&self, read: impl FnOnce(&net::Net) -> Option<T>) -> io::Result<T> {
        read(&self.world.lock().net).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTCONN))
    }

    /// The outcome of a receive that has `bytes` bytes.
    fn received(&mut self, key: Key, bytes: usize) -> Outcome<Accepted> {
        if self.buffers.recv_into.is_some() {
            let recv_buf = self
                .buffers
                .slot(key)
                .recv_buf
                .take()
                .expect("a receive into the caller's buffer has it");
            return Outcome::Filled(recv_buf, OpResult::bytes(bytes));
        }
        Outcome::Received(self.take_lease())
    }

    /// A lease of the bytes that the receive put into the pool buffer.
    fn take_lease(&mut self) -> Lease {
        let id = self.buffers.open.expect("a receive that has bytes has a buffer");
        let len = std::mem::take(&mut self.buffers.filled) as u32;
        let pool = &self.buffers.pool;
        let more = pool.room(id).1 - len >= ROOM_BYTES_MIN.min(pool.size());
        if !more {
            self.buffers.open = None;
        }
        pool.deliver(id, len, more).expect("the buffer is checked out and written within its room")
    }

    /// The outcome of an operation that has ended, with its memory.
    fn outcome(
        &mut self,
        key: Key,
        kind: OpKind,
        result: Result<usize, Errno>,
    ) -> Outcome<Accepted> {
        let op_result = result.map_or_else(OpResult::failed, OpResult::bytes);
        match kind {
            OpKind::Connect => Outcome::Connected(result.map(drop)),
            OpKind::Accept => Outcome::AcceptFailed(result.err().unwrap_or(Errno(libc::ECANCELED))),
            OpKind::Hangup => Outcome::HungUp(result.map(drop)),
            OpKind::Close => Outcome::Closed,
            OpKind::Send => {
                let batch = self.buffers.slot(key).batch.take().expect("a send has a batch");
                Outcome::Sent(batch, op_result)
            }
            OpKind::Recv => match self.buffers.slot(key).recv_buf.take() {
                Some(recv_buf) => Outcome::Filled(recv_buf, op_result),
                None => Outcome::RecvEnded(result.map(drop)),
            },
        }
    }
}

impl Backend for Sim {
    type Socket = Accepted;
    const CAN_SPIN: bool = false;
    /// As on io_uring.
    const EARLY_PAYLOADS_MAX: usize = 1;

    fn epoch(&self) -> Instant {
        self.epoch
    }

    fn now(&self) -> u64 {
        self.world.now()
    }

    fn open(&mut self, key: Key, what: Open<'_, Accepted>) -> Result<(), Error> {
        match what {
            Open::Listen(addr, options) => {
                addr.to_sockaddr()?;
                if self.has_ended() {
                    return Err(Error::Simulation(Halt::Crashed));
                }
                let listened = self.world.lock().net.open_listener(self.engine, key, addr, options);
                listened.map_err(|errno| Error::Os { call: "listen", errno })
            }
            Open::Accepted(socket) => {
                match self.world.lock().net.attach(self.engine, key, socket.sock) {
                    true => Ok(()),
                    false => Err(Error::Os { call: "accept", errno: Errno(libc::ECONNRESET) }),
                }
            }
            Open::Stream(_) | Open::Listener(_) => Sim::unsupported("adopting a descriptor"),
        }
    }

    fn start(&mut self, key: Key, operation: Operation) -> Started {
        let started = match operation {
            Operation::Send(batch) => return self.start_send(key, batch),
            Operation::RecvInto(recv_buf) => return self.start_recv_into(key, recv_buf),
            Operation::Connect(connect) => return self.start_connect(key, connect),
            Operation::Shutdown => {
                self.world.lock().net.shutdown_write(self.engine, key);
                return Started::Done;
            }
            Operation::Recv => {
                self.start_operation(|net, engine| net.start_recv(engine, key, RecvTarget::Pool))
            }
            Operation::WatchHangup => {
                self.start_operation(|net, engine| net.start_hangup(engine, key))
            }
            Operation::Accept => self.start_operation(|net, engine| net.start_accept(engine, key)),
            Operation::Close(mode) => {
                self.start_operation(|net, engine| net.start_close(engine, key, mode))
            }
        };
        if started { Started::InFlight } else { Started::NoRoom(operation) }
    }

    fn cancel(&mut self, key: Key, kind: OpKind) {
        if !self.status.is_dead() {
            self.world.lock().net.cancel(self.engine, key, kind);
        }
    }

    fn wait(&mut self, until: Option<u64>) -> Result<(), Error> {
        let early = self.world.lock().net.begin_wait(self.engine);
        if early || self.status.has_ready() && !self.waker_shared.is_notified() {
            return Ok(());
        }
        let waited = self.world.wait(Until::Engine(self.engine), until);
        self.waker_shared.reset();
        if self.status.is_dead() {
            return Err(Error::Simulation(Halt::Crashed));
        }
        waited.map(drop).map_err(Error::Simulation)
    }

    fn next(&mut self) -> Option<Completed<Accepted>> {
        if !self.status.has_ready() {
            return None;
        }
        let outcome = self.world.lock().net.next(self.engine, &mut self.buffers)?;
        self.stats.cqes += 1;
        Some(match outcome {
            NetOutcome::Completed(key, kind, result) => {
                Completed::last(key, self.outcome(key, kind, result))
            }
            NetOutcome::Received { key, more, bytes } => {
                Completed { key, more, outcome: self.received(key, bytes) }
            }
            NetOutcome::Accepted { listener, sock, more } => {
                let socket = Accepted { world: Arc::clone(&self.world), sock };
                Completed { key: listener, more, outcome: Outcome::Accepted(socket) }
            }
        })
    }

    fn has_next(&self) -> bool {
        self.status.has_ready() || self.status.is_dead() || self.waker_shared.is_notified()
    }

    fn free_buffers(&self) -> usize {
        self.buffers.pool.free() + usize::from(self.buffers.open.is_some())
    }

    fn addr(&self, key: Key, side: Side) -> io::Result<Addr> {
        self.read_net(|net| {
            let state = &net.engines[self.engine as usize];
            if let Some(listener) = state.listener(key) {
                return Some(net.listener(listener)?.addr.clone());
            }
            let sock = net.sock(state.conn(key)?)?;
            match side {
                Side::Local => Some(sock.local.clone()),
                Side::Peer => (!sock.connecting).then(|| sock.remote.clone()),
            }
        })
    }

    fn fd(&self, _key: Key) -> Option<BorrowedFd<'_>> {
        None
    }

    fn release(&mut self, _key: Key) -> Result<OwnedFd, Error> {
        Sim::unsupported("releasing a descriptor")
    }

    fn completion_fd(&mut self) -> Result<OwnedFd, Error> {
        Sim::unsupported("waiting in another event loop")
    }

    fn reset_completion_fd(&mut self) {}

    fn stats(&self) -> Stats {
        Stats { heap_copies: self.buffers.pool.heap_copies(), ..self.stats }
    }

    fn shut_down(&mut self, _patience: Duration) -> bool {
        let gone = self.has_ended();
        let net = &mut self.world.lock().net;
        match gone {
            true => net.close_engine(self.engine),
            // Delayed completions of this engine are then dropped.
            false => net.engines[self.engine as usize].terminate(),
        }
        true
    }

    fn has_ended(&self) -> bool {
        // A program that panics does not close its connections one by one: the simulated kernel
        // does, as at the exit of a process.
        let world = self.world.lock();
        world.ended || self.status.is_dead() || std::thread::panicking()
    }
}
