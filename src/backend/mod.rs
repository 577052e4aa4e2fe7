//! The contract between the engine and its backends.
//!
//! ```text
//! engine                    backend                      kernel, or simulated network
//! start(key, operation) --> keeps the operation
//! wait(until) ------------> submits what was started --> executes it
//!                           waits for a completion <---- completes it
//! next() <----------------- returns one completion
//! ```
//!
//! The engine starts operations, waits, and takes completions. It reads no clock, makes no system
//! call and holds no descriptor: it names a connection or listener by its [`Key`] and takes the
//! time from [`Backend::now`]. A backend is therefore a kernel interface (`uring`, `epoll`) or a
//! simulated network (`sim`).
//!
//! # Memory
//!
//! An [`Operation`] owns all memory that the kernel reads or writes for it: the payloads of a send,
//! the buffer of a receive, the address of a connect. [`Backend::start`] takes the operation by
//! value. The memory comes back by value: from [`Backend::next`] when the operation completes, or
//! from `start` if there was no room or the send completed at once. No function of the contract
//! takes a reference that outlives the call.
//!
//! The engine therefore cannot free, move or change memory that the kernel uses. An engine that
//! starts, cancels and drops in the wrong order gets wrong events, never a use after free; the
//! random engine in `backend/tests/` checks this on each backend. A backend that is dropped with
//! operations in flight, also by a panic, leaks the memory that the kernel may still use, and only
//! that.
//!
//! # Rules
//!
//! 1. **Results come from `next`.** This includes a failure to start, such as EMFILE for the socket
//!    of a connect. Two operations may complete in `start`: [`Operation::Shutdown`] always does
//!    ([`Started::Done`]), and a backend may try a send at once ([`Started::Sent`]).
//! 2. **One final completion.** An operation in flight ends with exactly one [`Completed`] that has
//!    `more` unset. A multishot operation has any number of completions with `more` set before it.
//!    A cancelled operation ends too: with ECANCELED, or with a full or partial success if the
//!    cancel came too late.
//! 3. **One operation of a kind.** Per key, at most one operation of each [`OpKind`] is in flight.
//!    `RecvInto` counts as a receive. When a close starts, no other operation is in flight.
//! 4. **A close ends the key.** After `Closed` the backend has no state for the key, and its slot
//!    can be used under a new key. What the kernel still reports for the old key is counted
//!    (`unknown_completions`) and dropped; only a `Released` is handed out.
//! 5. **`NoRoom` changes nothing.** [`Started::NoRoom`] returns the operation as it was. The engine
//!    starts it again after the next [`Backend::wait`].
//! 6. **Kernel values are checked.** Each buffer id and length that memory safety depends on is
//!    checked. After a violation `next` returns nothing more, and each `wait` fails with
//!    [`Error::EngineFailed`].
//!
//! # Operations
//!
//! | operation | does | completes with |
//! |---|---|---|
//! | `Connect` | creates a socket for the key and connects it; sends `first` if it can | `Connected`. With `first`, a send is in flight too, and its `Sent` follows: 0 bytes if it was not tried, ECANCELED if the connect failed. |
//! | `Accept` | accepts connections of a listener | `Accepted` with `more` for each connection, or one without `more`, after which the engine starts it again. `AcceptFailed` if it was cancelled or failed. The socket gets a key by [`Backend::open`]; dropping it closes it. |
//! | `Recv` | receives into buffers of the pool | `Received` with `more`, or one without `more`, after which the engine starts it again. `RecvEnded` at the end of the stream or with an error; ENOBUFS means that the pool has no buffer: no byte is lost, and the engine starts the receive again when a buffer is free. |
//! | `RecvInto` | receives into the caller's buffer | `Filled`: the buffer, and how many bytes were appended. 0 is the end of the stream. |
//! | `Send` | sends from the front of the batch | `Sent`: the batch, and how many of its bytes were taken, from 0 (the engine starts it again) to all. A zero-copy send keeps a share of the payload, and a `Released` returns it when the kernel no longer reads it. |
//! | `WatchHangup` | waits for the peer's FIN or RST; takes neither bytes nor the error from the socket | `HungUp`, at once if the peer has hung up already. May be in flight at a [`Backend::release`], which ends it without a completion. |
//! | `Shutdown` | sends the FIN; no send may be in flight | nothing: `start` returns `Done`. |
//! | `Close` | closes the socket and ends the key | `Closed`. It does not fail. |
//!
//! `Released` and `Woken` complete no operation: rules 2 and 3 do not count them.

pub(crate) mod epoll;
pub(crate) mod select;
#[cfg(feature = "sim")]
pub(crate) mod sim;
#[cfg(test)]
mod tests;
pub(crate) mod uring;

use crate::buf::{Lease, Payload, RecvBuf, SendQueue};
use crate::config::Config;
use crate::error::{Errno, Error};
use crate::id::{EngineNumber, Key};
use crate::net::{Addr, socket};
use crate::options::{ConnectOptions, ListenOptions};
use crate::stats::Stats;
use crate::table::RESERVED_MAX;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// An operation to start. Owns all memory that the kernel reads or writes for it.
#[derive(Debug)]
pub(crate) enum Operation {
    Connect(Box<Connect>),
    Accept,
    /// Receives into buffers of the pool.
    Recv,
    /// Receives into the caller's buffer.
    RecvInto(Box<RecvBuf>),
    Send(SendBatch),
    /// Completes when the peer has sent its FIN or RST. Reads nothing.
    WatchHangup,
    /// Sends the FIN.
    Shutdown,
    Close(CloseMode),
}

/// A kind of operation that can be in flight and can be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum OpKind {
    Connect,
    Accept,
    Recv,
    Send,
    Hangup,
    Close,
}

/// The payloads of a send: the send queue of a connection at the start of the operation. The
/// operation takes as many bytes from its front as it can.
pub(crate) type SendBatch = Box<SendQueue>;

/// The parameters of a connect.
#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) addr: Addr,
    pub(crate) options: ConnectOptions,
    /// Sent as soon as the connection is established. Has at most [`Backend::EARLY_PAYLOADS_MAX`]
    /// payloads.
    pub(crate) first: Option<SendBatch>,
}

/// What a close sends to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseMode {
    /// A FIN, if none was sent before.
    Orderly,
    /// An RST.
    Reset,
}

/// The result of [`Backend::start`].
#[derive(Debug)]
pub(crate) enum Started {
    /// The operation completes in [`Backend::next`].
    InFlight,
    /// The operation has completed, without an outcome.
    Done,
    /// There is no room before the next wait. The operation was not started.
    NoRoom(Operation),
    /// The send has completed.
    Sent(SendBatch, OpResult),
}

/// The result of an operation, as in a CQE: a number of bytes, or a negative error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpResult(i32);

impl OpResult {
    /// # Panics
    /// If `count` is 2 GiB or more. No operation transfers that much (MAX_RW_COUNT of the kernel).
    #[inline]
    pub(crate) fn bytes(count: usize) -> OpResult {
        OpResult(i32::try_from(count).expect("an operation transfers less than 2 GiB"))
    }

    #[inline]
    pub(crate) fn failed(errno: Errno) -> OpResult {
        OpResult(-errno.0.saturating_abs().max(1))
    }

    /// The `res` field of a CQE.
    #[inline]
    pub(crate) fn from_cqe(result: i32) -> OpResult {
        OpResult(result)
    }

    #[inline]
    pub(crate) fn get(self) -> Result<usize, Errno> {
        usize::try_from(self.0).map_err(|_| Errno(self.0.saturating_neg()))
    }
}

/// What an operation completed with.
#[derive(Debug)]
pub(crate) enum Outcome<S> {
    /// Received bytes, in a buffer of the pool.
    Received(Lease),
    /// The end of a receive into the pool. `Ok`: the end of the stream.
    RecvEnded(Result<(), Errno>),
    /// The caller's buffer, and how many bytes were appended to it.
    Filled(Box<RecvBuf>, OpResult),
    /// The batch, and how many of its bytes were taken.
    Sent(SendBatch, OpResult),
    /// The kernel no longer reads this payload of a zero-copy send (IORING_CQE_F_NOTIF).
    Released(Box<Payload>),
    /// The peer sent its FIN or RST.
    HungUp(Result<(), Errno>),
    Connected(Result<(), Errno>),
    Accepted(S),
    AcceptFailed(Errno),
    Closed,
    /// The waker was called. The key is [`Key::NONE`].
    Woken,
}

/// A completion. With `more`, the operation stays in flight (IORING_CQE_F_MORE).
#[derive(Debug)]
pub(crate) struct Completed<S> {
    pub(crate) key: Key,
    pub(crate) more: bool,
    pub(crate) outcome: Outcome<S>,
}

impl<S> Completed<S> {
    /// The final completion of an operation.
    #[inline]
    pub(crate) fn last(key: Key, outcome: Outcome<S>) -> Completed<S> {
        Completed { key, more: false, outcome }
    }
}

/// What [`Backend::open`] gives a key to.
#[derive(Debug)]
pub(crate) enum Open<'a, S> {
    /// A new listener: binds and listens.
    Listen(&'a Addr, &'a ListenOptions),
    /// An accepted connection.
    Accepted(S),
    /// A connected socket of the caller.
    Stream(OwnedFd),
    /// A listening socket of the caller.
    Listener(OwnedFd),
}

/// One of the two addresses of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Local,
    Peer,
}

/// A backend. The rules are in the [module](self)'s documentation. Times are nanoseconds since
/// [`Backend::epoch`].
pub(crate) trait Backend {
    /// An accepted connection without a key. Dropping it closes it.
    type Socket;

    /// Receives happen in [`Backend::next`], as on epoll. The engine can then stop a turn at
    /// `Tuning::turn_bytes`, and further bytes stay in the socket.
    const RECEIVES_IN_NEXT: bool = false;

    /// Time passes during repeated waits with a timeout of zero, so that the engine can spin.
    const CAN_SPIN: bool = true;

    /// The most payloads that [`Connect::first`] can have.
    const EARLY_PAYLOADS_MAX: usize = 1;

    /// The instant at which [`Backend::now`] was zero.
    fn epoch(&self) -> Instant;

    /// The time.
    fn now(&self) -> u64;

    /// Gives a key to a new or existing socket. Completes in the call, because the caller needs
    /// the port or the error. After an error the backend has no state for the key.
    fn open(&mut self, key: Key, what: Open<'_, Self::Socket>) -> Result<(), Error>;

    /// Starts an operation. [`Backend::wait`] submits it.
    fn start(&mut self, key: Key, operation: Operation) -> Started;

    /// Requests that an operation in flight ends. Has no effect if none of the kind is in flight.
    fn cancel(&mut self, key: Key, kind: OpKind);

    /// Submits what was started, and waits for a completion until the time `until` (`None`:
    /// without a limit; a time in the past: not at all). May return early without a completion.
    fn wait(&mut self, until: Option<u64>) -> Result<(), Error>;

    /// The next completion. Does not block.
    fn next(&mut self) -> Option<Completed<Self::Socket>>;

    /// True if [`Backend::next`] may have a completion without a wait, or after a wait with a
    /// timeout of zero.
    fn has_next(&self) -> bool;

    /// How many buffers of the pool receives can use now.
    fn free_buffers(&self) -> usize;

    /// An address of a connection, or the `Side::Local` address of a listener.
    fn addr(&self, key: Key, side: Side) -> io::Result<Addr>;

    /// The descriptor of a key. `None` on backends without descriptors.
    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>>;

    /// Returns the descriptor of a connection to the caller, and ends the key. No operation but a
    /// `WatchHangup` may be in flight; that ends without a completion.
    fn release(&mut self, key: Key) -> Result<OwnedFd, Error>;

    /// A descriptor that is readable when there are completions to reap, for another event loop.
    /// Called at most once.
    fn completion_fd(&mut self) -> Result<OwnedFd, Error>;

    /// Makes the descriptor of [`Backend::completion_fd`] unreadable until the next completion.
    /// [`Backend::has_next`] reports completions from before this call.
    fn reset_completion_fd(&mut self);

    /// What the backend has counted. `Engine::stats` adds it to the counters of the engine.
    fn stats(&self) -> Stats;

    /// Cancels the operations that the backend started for itself (for its waker), and reaps
    /// completions until none has come for `patience`. Returns false if the kernel may still use
    /// memory: dropping the backend then leaks it.
    fn shut_down(&mut self, patience: Duration) -> bool;

    /// True if the simulated host or world of the backend has ended: nothing is in flight, and
    /// nothing will complete.
    fn has_ended(&self) -> bool {
        false
    }
}

/// The part of the configuration that a backend needs, with defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    /// Part of each key of the engine.
    pub(crate) engine: EngineNumber,
    /// The most payloads of one send operation.
    pub(crate) gather_max: usize,
    /// The most completions with data that a connection gets per turn.
    pub(crate) budget: u32,
    /// While fewer buffers of the pool than this are free, received bytes are copied to the heap.
    pub(crate) low_watermark: u32,
    /// How many buffers the pool has, and the size of each in bytes.
    pub(crate) buffers: (u32, u32),
    /// For how many connections tables reserve capacity.
    pub(crate) connections_reserved: usize,
}

impl Parameters {
    /// `incremental`: several receives share a buffer (IOU_PBUF_RING_INC on io_uring), so that the
    /// default is few and large buffers.
    pub(crate) fn new(config: &Config, engine: EngineNumber, incremental: bool) -> Parameters {
        let buffers =
            config.buffers.unwrap_or(if incremental { (64, 64 << 10) } else { (1024, 4 << 10) });
        let low_watermark =
            config.tuning.buffers_low_watermark.unwrap_or(buffers.0 / 8).clamp(1, buffers.0);
        let connections_reserved = config.connections_max.min(RESERVED_MAX);
        Parameters {
            engine,
            gather_max: config.tuning.gather_max,
            budget: config.tuning.budget,
            low_watermark,
            buffers,
            connections_reserved,
        }
    }
}

/// The backend of an engine. Matched once per call of the engine, not once per operation.
#[derive(Debug)]
pub(crate) enum AnyBackend {
    Uring(Box<uring::Uring>),
    Epoll(Box<epoll::EpollBackend>),
    #[cfg(feature = "sim")]
    Sim(Box<sim::Sim>),
}

/// For the simulated backend, whose world schedules the polls of its engines. No effect on others.
impl AnyBackend {
    /// Sets the time at which the engine must be polled even if nothing completes.
    #[inline]
    pub(crate) fn set_deadline(&mut self, deadline: impl FnOnce() -> Option<u64>) {
        match self {
            #[cfg(feature = "sim")]
            AnyBackend::Sim(sim) => sim.set_deadline(deadline()),
            AnyBackend::Uring(_) | AnyBackend::Epoll(_) => drop(deadline),
        }
    }

    /// True if that time has come.
    pub(crate) fn is_poll_due(&self) -> bool {
        match self {
            #[cfg(feature = "sim")]
            AnyBackend::Sim(sim) => sim.is_poll_due(),
            AnyBackend::Uring(_) | AnyBackend::Epoll(_) => false,
        }
    }
}

/// An address of a socket, for backends that have descriptors.
fn addr_of(fd: Option<BorrowedFd<'_>>, side: Side) -> io::Result<Addr> {
    let fd = fd.ok_or(io::ErrorKind::NotConnected)?;
    match side {
        Side::Local => socket::local_addr(fd),
        Side::Peer => socket::peer_addr(fd),
    }
}

/// Evaluates `$body` with `$backend` bound to the backend in `$any`.
macro_rules! with_backend {
    ($any:expr, $backend:ident => $body:expr) => {
        match $any {
            $crate::backend::AnyBackend::Uring($backend) => $body,
            $crate::backend::AnyBackend::Epoll($backend) => $body,
            #[cfg(feature = "sim")]
            $crate::backend::AnyBackend::Sim($backend) => $body,
        }
    };
}
pub(crate) use with_backend;
