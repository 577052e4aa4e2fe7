//! The simulated backend: the same operations on a network that exists only in memory, in virtual
//! time, with faults drawn from a seed.
//!
//! Owns: one engine's view of the world, and its receive pool. The world itself is in the files
//! beside this one: `net.rs`, `sock.rs` and `stream.rs` are the kernels and the wires, `events.rs`
//! is the future, `op/` what engines want and `view.rs` what the world knows of each, `schedule.rs`
//! who runs when.
//!
//! No descriptor, no system call, no wall clock; no hash seed and no address decides anything. Data
//! stays with its simulated socket until the engine takes it from [`Backend::next`], as on epoll;
//! that a completion comes late, early, in pieces or out of order with others is a matter of the
//! fault plan.

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
mod view;

use super::{
    Backend, BackendStats, Completed, OpKind, OpResult, Open, Operation, Outcome, Parameters,
    SendBatch, Side, Started,
};
use crate::buf::{Lease, Pool, RecvBuf};
use crate::error::{Errno, Error, Halt};
use crate::id::Key;
use crate::net::Addr;
use crate::waker::Inbox;
pub use faults::{Fault, Faults};
pub use net::Link;
use op::{Sink, Told};
pub use peer::{Peer, PeerListener};
pub(crate) use schedule::{Shared, Until};
pub(crate) use script::Script;
use sock::{Recv, SockId};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use view::Status;

/// Piecewise filling opens the next buffer when less than this is left.
const LEAST_ROOM: u32 = 2048;

/// Deadlines after this, 146 years, never come: sums of such a time and a few delays do not
/// overflow.
const NEVER: u64 = 1 << 62;

/// At most some 36 years, so that sums of a few never overflow.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(1 << 60)
}

/// A connection that an engine accepted and has not given a key. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Accepted {
    world: Arc<Shared>,
    sock: SockId,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        if world.net.sock(self.sock).is_some_and(|sock| matches!(sock.owner, sock::Owner::Fresh(_)))
        {
            world.net.close(self.sock, false);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Sim {
    world: Arc<Shared>,
    engine: u32,
    status: Arc<Status>,
    inbox: Arc<Inbox>,
    epoch: Instant,
    buffers: Buffers,
    parameters: Parameters,
    stats: BackendStats,
    /// What the world knows of [`Sim::note_deadline`].
    deadline: Option<u64>,
}

/// What the operations in flight hold, and where the bytes of the receive at hand go.
#[derive(Debug)]
struct Buffers {
    pool: Pool,
    /// The pool buffer that is being filled.
    open: Option<u16>,
    /// Bytes of the receive at hand that are in it.
    filled: usize,
    /// The slot whose caller's buffer the receive at hand goes to.
    into: Option<usize>,
    held: Vec<Held>,
}

/// What the operations of a slot hold.
#[derive(Debug, Default)]
struct Held {
    batch: Option<SendBatch>,
    recv_buf: Option<Box<RecvBuf>>,
}

impl Buffers {
    fn held(&mut self, key: Key) -> &mut Held {
        let index = key.slot();
        if self.held.len() <= index {
            self.held.resize_with(index + 1, Held::default);
        }
        &mut self.held[index]
    }
}

impl Sink for Buffers {
    fn room(&mut self, key: Key, how: Recv) -> Option<usize> {
        match how {
            Recv::Window(len) => {
                self.into = Some(key.slot());
                Some(len)
            }
            Recv::Stream => {
                self.into = None;
                self.open = Some(self.open.or_else(|| self.pool.checkout())?);
                self.open.map(|id| self.pool.room(id).1 as usize)
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        match (self.into, self.open) {
            (Some(slot), _) => self.put_into(slot, bytes),
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
        inbox: Arc<Inbox>,
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
            let engine = net.add_engine(host, Arc::clone(&inbox));
            (engine, Arc::clone(&net.engines[engine as usize].status))
        };
        let buffers = Buffers { pool, open: None, filled: 0, into: None, held: Vec::new() };
        Ok(Sim {
            world,
            engine,
            status,
            inbox,
            epoch,
            buffers,
            parameters,
            stats: BackendStats::default(),
            deadline: None,
        })
    }

    fn not_here<T>(what: &str) -> Result<T, Error> {
        Err(Error::Unsupported {
            what: what.to_owned(),
            why: "the simulated backend has no descriptors".to_owned(),
        })
    }

    /// When the engine wants to be polled although nothing happened.
    pub(crate) fn note_deadline(&mut self, deadline: Option<u64>) {
        let deadline = deadline.filter(|deadline| *deadline < NEVER);
        if deadline != self.deadline {
            self.deadline = deadline;
            let state = &mut self.world.lock().net.engines[self.engine as usize];
            state.deadline = deadline.filter(|_| !state.is_dead());
        }
    }

    /// Whether the world waits for this engine to be polled.
    pub(crate) fn is_expected(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= self.world.now())
    }

    /// Starts an operation, unless the fault plan says that there is no room: then false.
    fn start_in_world(&mut self, start: impl FnOnce(&mut net::Net, u32)) -> bool {
        if self.status.is_dead() {
            return true;
        }
        let mut world = self.world.lock();
        if world.net.queue_full(self.engine).is_err() {
            return false;
        }
        self.stats.sqes += 1;
        start(&mut world.net, self.engine);
        true
    }

    fn local<T>(&self, look: impl FnOnce(&net::Net) -> Option<T>) -> io::Result<T> {
        look(&self.world.lock().net).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTCONN))
    }

    /// What a receive put somewhere, as the engine gets it.
    fn received(&mut self, key: Key, bytes: usize) -> Outcome<Accepted> {
        if self.buffers.into.is_some() {
            let recv_buf =
                self.buffers.held(key).recv_buf.take().expect("a receive into a buffer has one");
            return Outcome::Filled(recv_buf, OpResult::bytes(bytes));
        }
        Outcome::Received(self.pick_up())
    }

    /// Makes a lease of what is in the pool's buffer.
    fn pick_up(&mut self) -> Lease {
        let id = self.buffers.open.expect("a receive that has bytes has a buffer");
        let len = std::mem::take(&mut self.buffers.filled) as u32;
        let pool = &self.buffers.pool;
        let more = pool.room(id).1 - len >= LEAST_ROOM.min(pool.size());
        if !more {
            self.buffers.open = None;
        }
        pool.deliver(id, len, more).expect("checked out, and written within its room")
    }

    /// The end of an operation, with what it held.
    fn ended(&mut self, key: Key, kind: OpKind, result: Result<usize, Errno>) -> Outcome<Accepted> {
        let op_result = result.map_or_else(OpResult::failed, OpResult::bytes);
        match kind {
            OpKind::Connect => Outcome::Connected(result.map(drop)),
            OpKind::Accept => Outcome::AcceptFailed(result.err().unwrap_or(Errno(libc::ECANCELED))),
            OpKind::Hangup => Outcome::HungUp(result.map(drop)),
            OpKind::Close => Outcome::Closed,
            OpKind::Send => {
                let batch = self.buffers.held(key).batch.take().expect("a send has a batch");
                Outcome::Sent(batch, op_result)
            }
            OpKind::Recv => match self.buffers.held(key).recv_buf.take() {
                Some(recv_buf) => Outcome::Filled(recv_buf, op_result),
                None => Outcome::RecvEnded(result.map(drop)),
            },
        }
    }
}

impl Backend for Sim {
    type Socket = Accepted;
    const CAN_SPIN: bool = false;
    /// As io_uring has it: a single payload goes along.
    const EARLY_PAYLOADS: usize = 1;

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
                if self.is_gone() {
                    return Err(Error::Simulation(Halt::Crashed));
                }
                let listened =
                    self.world.lock().net.engine_listens(self.engine, key, addr, options);
                listened.map_err(|errno| Error::Os { call: "listen", errno })
            }
            Open::Accepted(socket) => {
                match self.world.lock().net.attach(self.engine, key, socket.sock) {
                    true => Ok(()),
                    false => Err(Error::Os { call: "accept", errno: Errno(libc::ECONNRESET) }),
                }
            }
            Open::Stream(_) | Open::Listener(_) => Sim::not_here("adopting a descriptor"),
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
                self.start_in_world(|net, engine| net.start_recv(engine, key, Recv::Stream))
            }
            Operation::WatchHangup => {
                self.start_in_world(|net, engine| net.start_watch(engine, key))
            }
            Operation::Accept => self.start_in_world(|net, engine| net.start_accept(engine, key)),
            Operation::Close(mode) => {
                self.start_in_world(|net, engine| net.start_close(engine, key, mode))
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
        let early = self.world.lock().net.engine_waits(self.engine);
        if early || self.status.has_ready() && !self.inbox.is_rung() {
            return Ok(());
        }
        let waited = self.world.wait(Until::Engine(self.engine), until);
        self.inbox.reset();
        if self.status.is_dead() {
            return Err(Error::Simulation(Halt::Crashed));
        }
        waited.map(drop).map_err(Error::Simulation)
    }

    fn next(&mut self) -> Option<Completed<Accepted>> {
        if !self.status.has_ready() {
            return None;
        }
        let told = self.world.lock().net.next(self.engine, &mut self.buffers)?;
        self.stats.cqes += 1;
        Some(match told {
            Told::Done(key, kind, result) => Completed::last(key, self.ended(key, kind, result)),
            Told::Data { key, more, bytes } => {
                Completed { key, more, outcome: self.received(key, bytes) }
            }
            Told::Accepted { listener, sock, more } => {
                let socket = Accepted { world: Arc::clone(&self.world), sock };
                Completed { key: listener, more, outcome: Outcome::Accepted(socket) }
            }
        })
    }

    fn has_next(&self) -> bool {
        self.status.has_ready() || self.status.is_dead() || self.inbox.is_rung()
    }

    fn free_buffers(&self) -> usize {
        self.buffers.pool.free() + usize::from(self.buffers.open.is_some())
    }

    fn addr(&self, key: Key, side: Side) -> io::Result<Addr> {
        self.local(|net| {
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
        Sim::not_here("releasing a descriptor")
    }

    fn watch_fd(&mut self) -> Result<OwnedFd, Error> {
        Sim::not_here("waiting in a foreign loop")
    }

    fn watch_reset(&mut self) {}

    fn stats(&self) -> BackendStats {
        BackendStats { heap_copies: self.buffers.pool.heap_copies(), ..self.stats }
    }

    fn shut_down(&mut self, _patience: Duration) -> bool {
        let gone = self.is_gone();
        let net = &mut self.world.lock().net;
        match gone {
            true => net.exit(self.engine),
            // Whatever of it is still told late has nobody to tell it to.
            false => net.engines[self.engine as usize].die(),
        }
        true
    }

    fn is_gone(&self) -> bool {
        // A program that panics is in no state to end its connections one by one; the kernel closes
        // them.
        let world = self.world.lock();
        world.over || self.status.is_dead() || std::thread::panicking()
    }
}
