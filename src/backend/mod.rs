//! The contract between the engine and what carries its operations out.
//!
//! ```text
//! engine  --start_*-->  backend  --wait: hands all of it over, sleeps-->  next: one finished operation at a time  -->  engine
//! ```
//!
//! The engine's own logic holds no clock, makes no system call and knows no descriptor: it names connections and listeners
//! by [`Key`] and has the time from [`Backend::now`]. So a backend can be a kernel interface or a simulated world.
//!
//! # Rules for every backend
//!
//! 1. **Starting never finishes.** An operation is never completed inside the call that starts it; what came of it is told by
//!    [`Backend::next`] alone. A failure to start (no descriptor for the socket, say) is a finished operation like any other. The
//!    one exception is a send that a backend can try by itself: the call may say what was taken, and that was it.
//! 2. **One truth.** Each started operation ends with exactly one [`Done`] without `more`. Until then it may tell any number with
//!    `more`. A cancel is advice: the operation may still succeed, or tell a partial count, and then ends.
//! 3. **Memory stays put.** What a send or a receive into a caller's buffer was given is not moved or freed by the engine before
//!    that final `Done`; with zero-copy sends, before the notification ([`Outcome::Notified`]) that `more` announced.
//! 4. **One at a time.** The engine has at most one connect, one receive and one send in flight per connection, one accept per
//!    listener; and no operation is in flight when it starts a close.
//! 5. **A close ends the key.** After the `Done` of a close the backend knows nothing of the key any more, and the slot can be
//!    used again, with another generation. What still comes for the old key is counted and dropped.
//! 6. **No room is not lost.** [`QueueFull`] means that nothing happened: the engine starts the same operation again after the
//!    next [`Backend::wait`].
//!
//! # The operations
//!
//! - *connect* makes the socket and connects it: `Count(0)` or `Failed`. A backend that can takes the first send along: that one
//!   is in flight from then on, is told after the connect, and fails with it (ECANCELED).
//! - *accept* goes on telling `Socket` with `more` until cancelled or failed, or tells one and ends; the engine starts it again.
//!   A socket is attached to a new key with [`Backend::attach`], or dropped, which closes it.
//! - *recv* hands bytes over, with `more` or without; `Count(0)` is the end of the stream. ENOBUFS means that the pool has no buffer:
//!   nothing is lost, the engine starts again when there is one.
//! - *recv_into* fills one window: `Filled`, or bytes, no more than fit, which the engine copies; `Count(0)` is the end of the
//!   stream.
//! - *send* tells `Count`: how many of the given bytes were taken. Any number from zero (nothing was taken, start again) to all.
//! - *close* always succeeds.

pub(crate) mod dry;
pub(crate) mod epoll;
pub(crate) mod select;
pub(crate) mod sim;
pub(crate) mod uring;
mod windows;

use crate::buf::{Fill, Lease, SendQueue, Written};
use crate::config::Config;
use crate::error::{Errno, Error, Violation};
use crate::id::Key;
use crate::net::Addr;
use crate::options::{ConnectOptions, ListenOptions};
use crate::table::RESERVED_MAX;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Connect,
    Recv,
    /// Also the notification of a zero-copy send.
    Send,
    Close,
    Accept,
    CloseListener,
    /// Not an operation of a connection: somebody called the waker.
    Wake,
}

/// What came of an operation.
#[derive(Debug)]
pub(crate) enum Outcome<S> {
    Count(usize),
    Filled(Written),
    Socket(S),
    Notified,
    Failed(Errno),
}

/// A finished operation, or with `more` a part of one that goes on.
#[derive(Debug)]
pub(crate) struct Done<S> {
    pub(crate) key: Key,
    pub(crate) op: Op,
    pub(crate) more: bool,
    pub(crate) outcome: Outcome<S>,
}

/// What [`Backend::next`] came to.
#[derive(Debug)]
pub(crate) enum Next<S> {
    Nothing,
    /// Bytes, handed over already.
    Data,
    Done(Done<S>),
}

/// No room to start an operation before the next wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// What a connect needs to know.
#[derive(Clone, Debug)]
pub(crate) struct ConnectRequest {
    pub(crate) addr: Addr,
    pub(crate) options: ConnectOptions,
}

/// What the kernel sees of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseHow {
    /// The usual: a FIN, if none was sent yet.
    Quiet,
    /// A reset.
    Reset,
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
}

/// See the module's documentation for the rules.
pub(crate) trait Backend {
    /// An accepted or adopted connection that has no key yet. Dropping it closes it.
    type Socket;

    /// Bytes are received as [`Backend::next`] is asked, so that the engine decides how many a turn takes (`Config::turn_bytes`).
    const RECEIVES_WHEN_ASKED: bool = false;

    /// Real time passes while somebody looks with waits of no time.
    const CAN_SPIN: bool = true;

    /// The instant at which [`Backend::now`] was zero.
    fn epoch(&self) -> Instant;

    /// Nanoseconds since the epoch.
    fn now(&self) -> u64;

    /// Binds and listens. Synchronous: the caller wants to know the port, or the error.
    fn listen(&mut self, key: Key, addr: &Addr, options: &ListenOptions) -> Result<(), Error>;

    /// Gives a socket its key.
    fn attach(&mut self, key: Key, socket: Self::Socket) -> Result<(), Errno>;

    /// Takes over a listening descriptor.
    fn attach_listener(&mut self, key: Key, fd: OwnedFd) -> Result<(), Error>;

    /// Wraps a connected descriptor.
    fn adopt(&mut self, fd: OwnedFd) -> Result<Self::Socket, Error>;

    /// Gives a connection without operations in flight back to the caller.
    fn release(&mut self, key: Key) -> Result<OwnedFd, Error>;

    /// `first` is what can be sent as soon as the connection is there. True if the backend takes care of it: then a send is in flight.
    fn start_connect(
        &mut self,
        key: Key,
        request: &ConnectRequest,
        first: Option<&mut SendQueue>,
    ) -> Result<bool, QueueFull>;
    fn start_accept(&mut self, listener: Key) -> Result<(), QueueFull>;
    fn start_recv(&mut self, key: Key) -> Result<(), QueueFull>;
    fn start_recv_into(&mut self, key: Key, fill: &mut Fill) -> Result<(), QueueFull>;

    /// Sends what the queue has, at most `gather_max` payloads of it; `zero_copy` if that is possible. Some number of bytes: they were
    /// taken at once, and nothing is in flight.
    fn start_send(&mut self, key: Key, queue: &mut SendQueue, zero_copy: bool) -> Result<Option<usize>, QueueFull>;

    /// True if `start_send` can do `zero_copy`.
    fn can_zero_copy(&self) -> bool;

    /// Advises an operation in flight to end.
    fn cancel(&mut self, key: Key, op: Op) -> Result<(), QueueFull>;

    /// Sends the FIN. No send may be in flight.
    fn shutdown_write(&mut self, key: Key);

    fn start_close(&mut self, key: Key, how: CloseHow) -> Result<(), QueueFull>;
    fn start_close_listener(&mut self, listener: Key) -> Result<(), QueueFull>;

    /// Hands all that was started to the kernel, and waits until something is finished, or until the time `until` (`None`: for
    /// ever; a time that has passed: not at all). May return early with nothing.
    fn wait(&mut self, until: Option<u64>) -> Result<(), Error>;

    /// The next finished operation, or received bytes, which go to `data` with their connection and whether the receive goes on: the
    /// most common thing takes the shortest way. Never blocks.
    fn next(&mut self, data: impl FnMut(Key, bool, Lease)) -> Next<Self::Socket>;

    /// True if [`Backend::next`] has something, or a wait of no time would find something.
    fn has_next(&self) -> bool;

    /// What the kernel said that cannot be, if it did: the first such thing. From then on
    /// [`Backend::next`] has nothing, and the engine asks only for the end, [`Backend::shut_down`].
    fn violation(&self) -> Option<Violation> {
        None
    }

    /// The engine has found such a thing itself, by its own books.
    fn distrust(&mut self, _: Violation) {}

    /// How many buffers receives could find now.
    fn free_buffers(&self) -> usize;

    fn peer_addr(&self, key: Key) -> io::Result<Addr>;
    fn local_addr(&self, key: Key) -> io::Result<Addr>;
    fn listener_addr(&self, listener: Key) -> io::Result<Addr>;
    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>>;

    /// A descriptor that is readable when there is something to reap. Called at most once.
    fn watch_fd(&mut self) -> Result<OwnedFd, Error>;

    /// Makes `watch_fd`'s descriptor unreadable until the next thing happens. What happened before is seen by `has_next`.
    fn watch_reset(&mut self);

    fn stats(&self) -> BackendStats;

    /// The end. Everything of the engine's is closed, or the time for that ran out. Cancels what
    /// the backend has of its own in flight, and waits while something comes within `patience`;
    /// after a violation it waits for nothing. False if the kernel may still write to memory: then
    /// the backend has leaked it.
    fn shut_down(&mut self, patience: Duration) -> bool;

    /// True if what the backend stands on is gone: nothing is in its hands any more, and nothing is left to wait for.
    fn is_gone(&self) -> bool {
        false
    }

    /// When all is gone ([`Backend::is_gone`]): lets go of everything.
    fn abandon(&mut self) {}
}

/// What a backend needs of the configuration, digested.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub(crate) gather_max: usize,
    pub(crate) budget: u32,
    pub(crate) low_watermark: u32,
    pub(crate) buffers: (u32, u32),
    /// Connections to set aside address space for.
    pub(crate) connections_reserved: usize,
}

impl Tuning {
    /// `piecewise`: buffers are consumed piece by piece, so that few large ones do.
    pub(crate) fn new(config: &Config, piecewise: bool) -> Tuning {
        let buffers = config.buffers.unwrap_or(if piecewise { (64, 64 << 10) } else { (1024, 4 << 10) });
        let low_watermark = config.buffers_low_watermark.unwrap_or(buffers.0 / 8).clamp(1, buffers.0);
        let connections_reserved = config.connections_max.min(RESERVED_MAX);
        Tuning { gather_max: config.gather_max, budget: config.budget, low_watermark, buffers, connections_reserved }
    }
}

/// The backends an engine can have, matched once per call of the engine, not once per operation.
#[derive(Debug)]
pub(crate) enum AnyBackend {
    Uring(Box<uring::Uring>),
    Epoll(Box<epoll::EpollBackend>),
    Sim(Box<sim::Sim>),
}

/// Runs an expression with the backend that is in use, borrowed as `$any` is.
macro_rules! with_backend {
    ($any:expr, $backend:ident => $body:expr) => {
        match $any {
            $crate::backend::AnyBackend::Uring($backend) => $body,
            $crate::backend::AnyBackend::Epoll($backend) => $body,
            $crate::backend::AnyBackend::Sim($backend) => $body,
        }
    };
}
pub(crate) use with_backend;
