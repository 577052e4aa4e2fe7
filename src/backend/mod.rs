//! The contract between the engine and what carries its operations out.
//!
//! ```text
//! engine  --start-->  backend  --wait: submits all of it, sleeps-->  next  --completed-->  engine
//! ```
//!
//! The engine's logic reads no clock, makes no system call and knows no descriptor: it names
//! connections and listeners by [`Key`] and has the time from [`Backend::now`]. So a backend can be
//! a kernel interface or a simulated world.
//!
//! # An operation owns its memory
//!
//! An [`Operation`] owns all that the kernel reads or writes until it has completed: the payloads
//! of a send, the buffer of a receive, the address of a connect. [`Backend::start`] takes it by
//! value. It comes back by value from [`Backend::next`], or from `start` itself if there was no
//! room or a send was over at once. No function of the contract takes a reference that outlives the
//! call. So nothing above a backend can free, move or change that memory while the kernel uses it:
//! it is out of reach until the backend gives it back. An engine can start, cancel, drop and forget
//! in any order, and the worst that follows is a wrong event, not a use after free; `tests.rs`
//! beside this file holds such an engine against each backend. What a backend still has in the
//! kernel's hands when it is dropped, by whatever panic, is leaked, and nothing else.
//!
//! # Rules for every backend
//!
//! 1. **Starting never completes.** What came of an operation is told by [`Backend::next`] alone,
//!    also a failure to start (no descriptor for the socket, say). Two exceptions:
//!    [`Operation::Shutdown`] is over when `start` returns, and a send that a backend can try by
//!    itself may be ([`Started::Sent`]).
//! 2. **One final completion.** Each operation in flight ends with exactly one [`Completed`]
//!    without `more`. Before it there may be any number with `more`. A cancel is advice and can't
//!    be lost: the operation may still succeed, or have been cut short, and then ends.
//! 3. **One at a time.** The engine has at most one operation of an [`OpKind`] in flight per key,
//!    `RecvInto` counting as a receive, and none at all when it starts a close.
//! 4. **A close ends the key.** After its completion the backend knows nothing of the key, and the
//!    slot can be used again under another one. What still comes for the old key is counted and
//!    dropped.
//! 5. **No room loses nothing.** [`Started::NoRoom`] gives the operation back as it was: the engine
//!    starts it again after the next [`Backend::wait`].
//! 6. **Claims are checked.** What the kernel says and memory safety rests on (a buffer id, a
//!    length) is checked each time. If it does not hold, the backend hands out nothing more, and
//!    each `wait` is [`Error::EngineFailed`].
//!
//! # The operations
//!
//! | operation | completes with |
//! |---|---|
//! | `Connect` | `Connected`. Makes the socket too. If the first send was given along, `Sent` follows: ECANCELED if the connect failed, 0 bytes if nothing was tried. |
//! | `Accept` | `Accepted` with `more` until cancelled or failed, or one and no more: then the engine starts it again. A socket gets its key by [`Backend::open`], or is dropped, which closes it. |
//! | `Recv` | `Received`, with `more` or without; `RecvEnded`: the end of the stream, or an error. ENOBUFS: the pool has no buffer; nothing is lost, the engine starts again when there is one. |
//! | `RecvInto` | `Filled`: the buffer, with that many bytes more in it; 0 is the end of the stream. |
//! | `Send` | `Sent`: the queue, and how many of its bytes were taken, from 0 (start again) to all. Of a zero-copy send the backend keeps a share of the payload, and gives it back as `Released`. |
//! | `WatchHangup` | `HungUp`, once the peer has sent its FIN or reset the connection; at once if it did before. Takes no byte and no error from the socket. It may be in flight at a `release`. |
//! | `Shutdown` | nothing: [`Started::Done`]. Sends the FIN; no send may be in flight. |
//! | `Close` | `Closed`, always. |

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
use crate::table::RESERVED_MAX;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// What the engine asks for. Owns all that the kernel reads or writes meanwhile.
#[derive(Debug)]
pub(crate) enum Operation {
    Connect(Box<Connect>),
    Accept,
    /// Into a buffer of the pool.
    Recv,
    /// Into the caller's buffer.
    RecvInto(Box<RecvBuf>),
    Send(SendBatch),
    /// Tells when the peer has gone, without reading.
    WatchHangup,
    Shutdown,
    Close(CloseMode),
}

/// A kind of operation that can be in flight, and be cancelled.
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

/// What a send has of a connection's payloads: all that was queued, of which one operation takes as
/// much as it can.
pub(crate) type SendBatch = Box<SendQueue>;

/// What a connect needs to know.
#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) addr: Addr,
    pub(crate) options: ConnectOptions,
    /// What can be sent as soon as the connection is there, of at most [`Backend::EARLY_PAYLOADS`]
    /// payloads.
    pub(crate) first: Option<SendBatch>,
}

/// What the peer sees of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseMode {
    /// A FIN, if none was sent yet.
    Orderly,
    Reset,
}

/// What came of [`Backend::start`].
#[derive(Debug)]
pub(crate) enum Started {
    InFlight,
    /// The operation was over at once, and completes with nothing.
    Done,
    /// There is no room before the next wait: nothing happened.
    NoRoom(Operation),
    /// The send was tried at once, and nothing is in flight.
    Sent(SendBatch, OpResult),
}

/// The result of an operation as a CQE has it: a number of bytes, or a negative error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpResult(i32);

impl OpResult {
    /// # Panics
    /// Beyond 2 GiB, which no operation takes (MAX_RW_COUNT).
    #[inline]
    pub(crate) fn bytes(count: usize) -> OpResult {
        OpResult(i32::try_from(count).expect("an operation takes less than 2 GiB"))
    }

    #[inline]
    pub(crate) fn failed(errno: Errno) -> OpResult {
        OpResult(-errno.0.saturating_abs().max(1))
    }

    /// What a completion queue entry says.
    #[inline]
    pub(crate) fn of_cqe(result: i32) -> OpResult {
        OpResult(result)
    }

    #[inline]
    pub(crate) fn get(self) -> Result<usize, Errno> {
        usize::try_from(self.0).map_err(|_| Errno(self.0.saturating_neg()))
    }
}

/// What came of an operation.
#[derive(Debug)]
pub(crate) enum Outcome<S> {
    /// Bytes arrived.
    Received(Lease),
    /// A receive into the pool ended: at the end of the stream, or with an error.
    RecvEnded(Result<(), Errno>),
    /// The caller's buffer of a receive comes back, with that many bytes more.
    Filled(Box<RecvBuf>, OpResult),
    /// A send ended. That many bytes of the batch were taken.
    Sent(SendBatch, OpResult),
    /// The kernel has let go of a payload of a zero-copy send.
    Released(Box<Payload>),
    /// The peer sent its FIN, or reset the connection.
    HungUp(Result<(), Errno>),
    Connected(Result<(), Errno>),
    Accepted(S),
    AcceptFailed(Errno),
    Closed,
    /// The waker was called. Belongs to no key.
    Woken,
}

/// A completed operation, or with `more` a part of one that goes on.
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

/// What gets a key.
#[derive(Debug)]
pub(crate) enum Open<'a, S> {
    /// Binds and listens.
    Listen(&'a Addr, &'a ListenOptions),
    /// A connection that an accept told of.
    Accepted(S),
    /// A connected descriptor.
    Stream(OwnedFd),
    /// A listening descriptor.
    Listener(OwnedFd),
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Local,
    Peer,
}

/// The address of an end of a socket, for backends that have descriptors.
fn addr_of(fd: Option<BorrowedFd<'_>>, side: Side) -> io::Result<Addr> {
    let fd = fd.ok_or(io::ErrorKind::NotConnected)?;
    match side {
        Side::Local => socket::local_addr(fd),
        Side::Peer => socket::peer_addr(fd),
    }
}

/// Counters that only a backend can keep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BackendStats {
    pub(crate) syscalls: u64,
    pub(crate) sqes: u64,
    pub(crate) cqes: u64,
    pub(crate) unknown_completions: u64,
    pub(crate) queue_overflows: u64,
    pub(crate) heap_copies: u64,
    pub(crate) single_receives: u64,
    pub(crate) late_receives: u64,
    pub(crate) early_sends: u64,
    pub(crate) zero_copy_sends: u64,
    pub(crate) kernel_violations: u64,
}

/// See the module's documentation for the rules.
pub(crate) trait Backend {
    /// An accepted connection that has no key yet. Dropping it closes it.
    type Socket;

    /// Bytes are received as [`Backend::next`] is asked, so that the engine decides how many a turn
    /// takes (`Tuning::turn_bytes`).
    const RECEIVES_WHEN_ASKED: bool = false;

    /// Real time passes while somebody looks with waits of no time.
    const CAN_SPIN: bool = true;

    /// So many payloads can be sent with the connect.
    const EARLY_PAYLOADS: usize = 1;

    /// The instant at which [`Backend::now`] was zero.
    fn epoch(&self) -> Instant;

    /// Nanoseconds since the epoch.
    fn now(&self) -> u64;

    /// Gives a socket a key. Synchronous: the caller wants to know the port, or the error. On an
    /// error the backend knows nothing of the key.
    fn open(&mut self, key: Key, what: Open<'_, Self::Socket>) -> Result<(), Error>;

    /// Starts an operation.
    fn start(&mut self, key: Key, operation: Operation) -> Started;

    /// Advises an operation in flight to end.
    fn cancel(&mut self, key: Key, kind: OpKind);

    /// Submits all that was started, and waits until something has completed, or until the time
    /// `until` (`None`: for ever; a time that has passed: not at all). May return early with
    /// nothing.
    fn wait(&mut self, until: Option<u64>) -> Result<(), Error>;

    /// The next completed operation. Never blocks.
    fn next(&mut self) -> Option<Completed<Self::Socket>>;

    /// True if [`Backend::next`] has something, or a wait of no time would find something.
    fn has_next(&self) -> bool;

    /// How many buffers receives could find now.
    fn free_buffers(&self) -> usize;

    /// The address of an end of a connection, or of a listener (`Side::Local`).
    fn addr(&self, key: Key, side: Side) -> io::Result<Addr>;

    /// The descriptor, where there is one.
    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>>;

    /// Gives the descriptor of a connection back, and forgets the key. Nothing is in flight but a
    /// watch for a hang-up, which ends with this.
    fn release(&mut self, key: Key) -> Result<OwnedFd, Error>;

    /// A descriptor that is readable when there is something to reap. Called at most once.
    fn watch_fd(&mut self) -> Result<OwnedFd, Error>;

    /// Makes `watch_fd`'s descriptor unreadable until the next thing happens. What happened before
    /// is seen by `has_next`.
    fn watch_reset(&mut self);

    fn stats(&self) -> BackendStats;

    /// The end. Cancels what the backend has of its own in flight, and waits while something comes
    /// within `patience`. False if the kernel may still use memory: that will be leaked.
    fn shut_down(&mut self, patience: Duration) -> bool;

    /// True if what the backend stands on is gone: nothing is in flight any more, and nothing is
    /// left to wait for.
    fn is_gone(&self) -> bool {
        false
    }
}

/// What a backend needs of the configuration, with defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    /// Of the engine, for its keys.
    pub(crate) engine: EngineNumber,
    pub(crate) gather_max: usize,
    pub(crate) budget: u32,
    pub(crate) low_watermark: u32,
    pub(crate) buffers: (u32, u32),
    /// Connections to set aside address space for.
    pub(crate) connections_reserved: usize,
}

impl Parameters {
    /// `piecewise`: buffers are consumed piece by piece, so that few large ones do.
    pub(crate) fn new(config: &Config, engine: EngineNumber, piecewise: bool) -> Parameters {
        let buffers =
            config.buffers.unwrap_or(if piecewise { (64, 64 << 10) } else { (1024, 4 << 10) });
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

/// The backends an engine can have, matched once per call of the engine, not once per operation.
#[derive(Debug)]
pub(crate) enum AnyBackend {
    Uring(Box<uring::Uring>),
    Epoll(Box<epoll::EpollBackend>),
    #[cfg(feature = "sim")]
    Sim(Box<sim::Sim>),
}

/// What only a simulated world needs to know: it decides when which engine is polled.
impl AnyBackend {
    /// The time at which the engine must be polled although nothing completes.
    #[inline]
    pub(crate) fn note_deadline(&mut self, deadline: impl FnOnce() -> Option<u64>) {
        match self {
            #[cfg(feature = "sim")]
            AnyBackend::Sim(sim) => sim.note_deadline(deadline()),
            AnyBackend::Uring(_) | AnyBackend::Epoll(_) => drop(deadline),
        }
    }

    /// Whether the world waits for this engine to be polled.
    pub(crate) fn is_expected(&self) -> bool {
        match self {
            #[cfg(feature = "sim")]
            AnyBackend::Sim(sim) => sim.is_expected(),
            AnyBackend::Uring(_) | AnyBackend::Epoll(_) => false,
        }
    }
}

/// Runs an expression with the backend that is in use, borrowed as `$any` is.
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
