//! The simulated backend: the same operations on a network that exists only in memory, in virtual time, with faults drawn from a seed.
//!
//! Owns: one engine's view of the world, and its receive pool. The world itself is in the files beside this one: `net.rs`, `sock.rs`
//! and `stream.rs` are the kernels and the wires, `events.rs` is the future, `ops.rs` what engines want and `view.rs` what the world knows
//! of each, `schedule.rs` who runs when.
//!
//! No descriptor, no system call, no wall clock; no hash seed and no address decides anything. Data stays with its simulated socket
//! until the engine takes it from [`Backend::next`], as on epoll; that a completion comes late, early, in pieces or out of order
//! with others is a matter of the fault plan.

mod events;
mod faults;
mod net;
mod ops;
mod peer;
mod pipe;
mod rng;
mod schedule;
mod script;
mod sock;
mod stream;
mod trace;
mod view;

use super::{Backend, BackendStats, CloseHow, ConnectRequest, Done, Next, Op, Outcome, QueueFull, Tuning};
use crate::buf::{Fill, Lease, Pool, SendQueue};
use crate::error::{Errno, Error, Halt};
use crate::id::Key;
use crate::net::Addr;
use crate::options::ListenOptions;
use crate::waker::Inbox;
pub use faults::{Fault, Faults};
pub use net::Link;
use ops::{Landing, Told};
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

/// Deadlines after this, 146 years, never come: sums of such a time and a few delays do not overflow.
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
        if world.net.sock(self.sock).is_some_and(|sock| matches!(sock.owner, sock::Owner::Fresh(_))) {
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
    tuning: Tuning,
    stats: BackendStats,
    /// What the world knows of [`Sim::note_deadline`].
    deadline: Option<u64>,
}

/// The receive pool, and where the bytes of the receive at hand have landed.
#[derive(Debug)]
struct Buffers {
    pool: Pool,
    /// The pool buffer that is being filled.
    open: Option<u16>,
    landed: usize,
    /// The receive at hand is one into a caller's buffer, and lands on the heap.
    to_heap: bool,
    heap: Vec<u8>,
}

impl Landing for Buffers {
    fn room(&mut self, how: Recv) -> Option<usize> {
        self.to_heap = how != Recv::Stream;
        match how {
            Recv::Window(len) => Some(len),
            Recv::Stream => {
                self.open = Some(self.open.or_else(|| self.pool.checkout())?);
                self.open.map(|id| self.pool.room(id).1 as usize)
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        match self.open.filter(|_| !self.to_heap) {
            Some(id) => {
                self.pool.write(id, self.landed, bytes);
                self.landed += bytes.len();
            }
            None => self.heap.extend_from_slice(bytes),
        }
    }
}

impl Sim {
    pub(crate) fn new(
        world: Arc<Shared>,
        host: u32,
        tuning: Tuning,
        inbox: Arc<Inbox>,
        epoch: Instant,
    ) -> Result<Sim, Error> {
        let (count, size) = tuning.buffers;
        let pool = Pool::new(count, size, tuning.low_watermark).map_err(|error| Error::os("mmap", &error))?;
        let (engine, status) = {
            let net = &mut world.lock().net;
            if !net.hosts[host as usize].up {
                return Err(Error::Simulation(Halt::Crashed));
            }
            let engine = net.add_engine(host, Arc::clone(&inbox));
            (engine, Arc::clone(&net.engines[engine as usize].status))
        };
        let buffers = Buffers { pool, open: None, landed: 0, to_heap: false, heap: Vec::new() };
        Ok(Sim { world, engine, status, inbox, epoch, buffers, tuning, stats: BackendStats::default(), deadline: None })
    }

    fn not_here<T>(what: &str) -> Result<T, Error> {
        Err(Error::Unsupported { what: what.to_owned(), why: "the simulated backend has no descriptors".to_owned() })
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

    /// Starts an operation, unless the fault plan says that there is no room.
    fn start(&mut self, start: impl FnOnce(&mut net::Net, u32)) -> Result<(), QueueFull> {
        if self.status.is_dead() {
            return Ok(());
        }
        let mut world = self.world.lock();
        world.net.queue_full(self.engine)?;
        self.stats.sqes += 1;
        start(&mut world.net, self.engine);
        Ok(())
    }

    fn local<T>(&self, look: impl FnOnce(&net::Net) -> Option<T>) -> io::Result<T> {
        look(&self.world.lock().net).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTCONN))
    }

    /// Makes a lease of what has landed in the pool.
    fn pick_up(&mut self) -> Lease {
        let Some(id) = self.buffers.open.filter(|_| !self.buffers.to_heap) else {
            let lease = Lease::copied(&self.buffers.heap);
            self.buffers.heap.clear();
            return lease;
        };
        let len = std::mem::take(&mut self.buffers.landed) as u32;
        let pool = &self.buffers.pool;
        let more = pool.room(id).1 - len >= LEAST_ROOM.min(pool.size());
        if !more {
            self.buffers.open = None;
        }
        pool.deliver(id, len, more).expect("what landed was written to the open buffer, which is checked out")
    }
}

impl Backend for Sim {
    type Socket = Accepted;
    const CAN_SPIN: bool = false;

    fn epoch(&self) -> Instant {
        self.epoch
    }

    fn now(&self) -> u64 {
        self.world.now()
    }

    fn listen(&mut self, key: Key, addr: &Addr, options: &ListenOptions) -> Result<(), Error> {
        addr.to_sockaddr()?;
        if self.is_gone() {
            return Err(Error::Simulation(Halt::Crashed));
        }
        let listened = self.world.lock().net.engine_listens(self.engine, key, addr, options);
        listened.map_err(|errno| Error::Os { call: "listen", errno })
    }

    fn attach(&mut self, key: Key, socket: Accepted) -> Result<(), Errno> {
        match self.world.lock().net.attach(self.engine, key, socket.sock) {
            true => Ok(()),
            false => Err(Errno(libc::ECONNRESET)),
        }
    }

    fn attach_listener(&mut self, _key: Key, _fd: OwnedFd) -> Result<(), Error> {
        Sim::not_here("adopting a descriptor")
    }

    fn adopt(&mut self, _fd: OwnedFd) -> Result<Accepted, Error> {
        Sim::not_here("adopting a descriptor")
    }

    fn release(&mut self, _key: Key) -> Result<OwnedFd, Error> {
        Sim::not_here("releasing a descriptor")
    }

    fn start_connect(
        &mut self,
        key: Key,
        request: &ConnectRequest,
        first: Option<&mut SendQueue>,
    ) -> Result<bool, QueueFull> {
        let mut sends = false;
        // As io_uring has it: a single payload goes along.
        let first = first.filter(|queue| queue.entries() == 1);
        self.start(|net, engine| {
            if net.start_connect(engine, key, request)
                && let Some(bytes) = first.and_then(|queue| queue.gather(1).next())
            {
                net.send_along(engine, key, bytes);
                sends = true;
            }
        })?;
        Ok(sends)
    }

    fn start_accept(&mut self, listener: Key) -> Result<(), QueueFull> {
        self.start(|net, engine| net.start_accept(engine, listener))
    }

    fn start_recv(&mut self, key: Key) -> Result<(), QueueFull> {
        self.start(|net, engine| net.start_recv(engine, key, Recv::Stream))
    }

    fn start_recv_into(&mut self, key: Key, fill: &mut Fill) -> Result<(), QueueFull> {
        let (_, len) = fill.window();
        self.start(|net, engine| net.start_recv(engine, key, Recv::Window(len)))
    }

    fn start_send(&mut self, key: Key, queue: &mut SendQueue, _zero_copy: bool) -> Result<Option<usize>, QueueFull> {
        let max = self.tuning.gather_max;
        self.start(|net, engine| net.start_send(engine, key, queue.gather(max)))?;
        Ok(None)
    }

    fn can_zero_copy(&self) -> bool {
        false
    }

    fn cancel(&mut self, key: Key, op: Op) -> Result<(), QueueFull> {
        self.start(|net, engine| net.cancel(engine, key, op))
    }

    fn shutdown_write(&mut self, key: Key) {
        self.world.lock().net.shutdown_write(self.engine, key);
    }

    fn start_close(&mut self, key: Key, how: CloseHow) -> Result<(), QueueFull> {
        self.start(|net, engine| net.start_close(engine, key, how))
    }

    fn start_close_listener(&mut self, listener: Key) -> Result<(), QueueFull> {
        self.start(|net, engine| net.start_close_listener(engine, listener))
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

    fn next(&mut self, mut data: impl FnMut(Key, bool, Lease)) -> Next<Accepted> {
        if !self.status.has_ready() {
            return Next::Nothing;
        }
        let Some(told) = self.world.lock().net.next(self.engine, &mut self.buffers) else { return Next::Nothing };
        self.stats.cqes += 1;
        Next::Done(match told {
            Told::Done(key, op, result) => {
                let outcome = result.map_or_else(Outcome::Failed, Outcome::Count);
                Done { key, op, more: false, outcome }
            }
            Told::Data { key, more } => {
                data(key, more, self.pick_up());
                return Next::Data;
            }
            Told::Accepted { listener, sock, more } => {
                let socket = Accepted { world: Arc::clone(&self.world), sock };
                Done { key: listener, op: Op::Accept, more, outcome: Outcome::Socket(socket) }
            }
        })
    }

    fn has_next(&self) -> bool {
        self.status.has_ready() || self.status.is_dead() || self.inbox.is_rung()
    }

    fn free_buffers(&self) -> usize {
        self.buffers.pool.free() + usize::from(self.buffers.open.is_some())
    }

    fn peer_addr(&self, key: Key) -> io::Result<Addr> {
        self.local(|net| {
            let sock = net.sock(net.engines[self.engine as usize].conn(key)?)?;
            (!sock.connecting).then(|| sock.remote.clone())
        })
    }

    fn local_addr(&self, key: Key) -> io::Result<Addr> {
        self.local(|net| Some(net.sock(net.engines[self.engine as usize].conn(key)?)?.local.clone()))
    }

    fn listener_addr(&self, listener: Key) -> io::Result<Addr> {
        self.local(|net| Some(net.listener(net.engines[self.engine as usize].listener(listener)?)?.addr.clone()))
    }

    fn fd(&self, _key: Key) -> Option<BorrowedFd<'_>> {
        None
    }

    fn watch_fd(&mut self) -> Result<OwnedFd, Error> {
        Sim::not_here("waiting in a foreign loop")
    }

    fn watch_reset(&mut self) {}

    fn stats(&self) -> BackendStats {
        BackendStats { heap_copies: self.buffers.pool.heap_copies(), ..self.stats }
    }

    fn shut_down(&mut self, _patience: Duration) -> bool {
        // Whatever of it is still told late has nobody to tell it to.
        self.world.lock().net.engines[self.engine as usize].die();
        true
    }

    fn is_gone(&self) -> bool {
        // A program that panics is in no state to end its connections one by one; the kernel closes them.
        let world = self.world.lock();
        world.over || self.status.is_dead() || std::thread::panicking()
    }

    fn abandon(&mut self) {
        self.world.lock().net.exit(self.engine);
    }
}
