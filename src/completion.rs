//! Completions, as `poll` returns them. Owns: the events, the reasons of a close, and the caller's
//! buffer of completions. Invariant: the buffer never grows beyond its capacity. Must not know how
//! an event comes about.

use crate::buf::Lease;
use crate::error::Errno;
use crate::id::{ConnId, ListenerId, TimerId};
use bytes::BytesMut;
use std::collections::VecDeque;
use std::collections::vec_deque;
use std::fmt;

/// One event, and the connection that it belongs to. See [`Completions`] for a loop over them.
#[derive(Debug)]
pub struct Completion {
    /// The connection. [`ConnId::NONE`] for the events of listeners (except [`Event::Accepted`]),
    /// timers and wakers.
    pub conn: ConnId,
    /// The caller's tag of the connection ([`Engine::set_tag`](crate::Engine::set_tag)), the
    /// listener or the timer. 0 if there is none.
    pub tag: u64,
    /// The event.
    pub event: Event,
}

/// An event, as [`Engine::poll`](crate::Engine::poll) reports it.
///
/// ```
/// use proactor::{Completion, Event};
///
/// /// Describes the events that most programs handle.
/// fn describe(completion: &Completion) -> String {
///     match &completion.event {
///         Event::Accepted { listener } => format!("{} from {listener}", completion.conn),
///         Event::Connected => format!("{} is connected", completion.conn),
///         Event::Received(data) => format!("{} bytes", data.len()),
///         Event::ReadClosed => "end of stream".into(),
///         Event::Closed(reason) => format!("closed: {reason}"),
///         other => format!("{other:?}"),
///     }
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A listener accepted the connection `Completion::conn`.
    /// [`Engine::peer_addr`](crate::Engine::peer_addr) returns the address of the peer.
    Accepted {
        /// The listener that accepted it.
        listener: ListenerId,
    },
    /// A connection from [`Engine::connect`](crate::Engine::connect) is established.
    Connected,
    /// Bytes arrived. Dropping the lease returns its buffer to the pool.
    Received(Lease),
    /// The buffer passed to [`Engine::recv_into`](crate::Engine::recv_into), with all requested
    /// bytes, or with fewer if the stream ended first.
    Filled(BytesMut),
    /// End of stream: the FIN of the peer arrived. The write side stays open until it is closed
    /// locally.
    ReadClosed,
    /// Reads are paused, and the peer sent a FIN or reset the connection. Reported at most once
    /// per connection: in the first poll after the FIN or reset, or after the pause if that came
    /// later. It may be reported although reads were resumed in the meantime.
    ///
    /// Data that the peer sent earlier is not lost. It is delivered when reads are resumed,
    /// followed by [`Event::ReadClosed`] or [`Event::Closed`]. A FIN may be a half-close: the peer
    /// may still read.
    ///
    /// # Backends
    /// A POLL_ADD for POLLRDHUP on io_uring (5.6), EPOLLRDHUP on epoll (poll(2), epoll_ctl(2)).
    HungUp,
    /// The kernel took all bytes of a payload that was queued with
    /// [`Engine::send_tagged`](crate::Engine::send_tagged). It does not mean that the peer received
    /// them.
    Sent {
        /// The tag of the payload.
        tag: u64,
    },
    /// The send queue was full and has fallen to its low watermark. Sends are accepted again.
    Drained,
    /// The connection is closed. Each connection has exactly one such event, and it is the last.
    Closed(CloseReason),
    /// A timer fired. Its tag is `Completion::tag`.
    Timer {
        /// The timer. Its id is stale.
        id: TimerId,
    },
    /// [`Waker::wake`](crate::Waker::wake) was called at least once since the last poll.
    Woken,
    /// The listener stopped accepting: descriptors or memory ran out, or the number of connections
    /// is at `Config::connections_max`. New connections wait in the backlog of the kernel.
    ListenerPaused {
        /// The listener.
        listener: ListenerId,
        /// EMFILE, ENFILE, ENOBUFS or ENOMEM. `None` at `Config::connections_max`.
        errno: Option<Errno>,
    },
    /// The listener accepts again.
    ListenerResumed {
        /// The listener.
        listener: ListenerId,
    },
    /// The socket of the listener is closed, and its id is stale.
    ListenerClosed {
        /// The listener.
        listener: ListenerId,
        /// The error that closed it. `None` if the caller closed it. EIO if the engine has failed.
        errno: Option<Errno>,
    },
}

/// Why a connection closed.
///
/// ```
/// use proactor::{CloseKind, CloseReason, Errno};
/// let reason = CloseReason { kind: CloseKind::Reset, errno: Some(Errno(104)), unsent_bytes: 3 };
/// assert!(reason.to_string().starts_with("reset by the peer: ECONNRESET"));
/// assert!(reason.to_string().ends_with("(3 bytes unsent)"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// The cause.
    pub kind: CloseKind,
    /// The error number of the kernel, if the cause was an error.
    pub errno: Option<Errno>,
    /// Number of queued bytes that the kernel did not take.
    pub unsent_bytes: u64,
}

/// The cause of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseKind {
    /// Connect: there is no listener at the address (ECONNREFUSED; for a unix path also ENOENT).
    Refused,
    /// Connect: there is no route, or the network or the host is down.
    Unreachable,
    /// Connect: the timeout of the options or of the kernel passed.
    ConnectTimedOut,
    /// Connect: any other error, for instance EMFILE, EACCES or EADDRNOTAVAIL.
    ConnectFailed,
    /// The peer closed first, with a FIN.
    PeerClosed,
    /// The peer reset the connection, or the connection broke.
    Reset,
    /// The caller called `close` before the peer closed.
    Local,
    /// The caller called `abort`.
    Aborted,
    /// No byte was sent or received for the idle timeout.
    IdleTimedOut,
    /// The caller called `close`, and the kernel did not take all queued bytes before the linger
    /// deadline.
    LingerTimedOut,
    /// [`Engine::close_all`](crate::Engine::close_all) closed it.
    Shutdown,
    /// Any other error of the kernel, or the engine itself has failed
    /// ([`Error::EngineFailed`](crate::Error::EngineFailed)).
    Failed,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            CloseKind::Refused => "connection refused",
            CloseKind::Unreachable => "unreachable",
            CloseKind::ConnectTimedOut => "connect timed out",
            CloseKind::ConnectFailed => "connect failed",
            CloseKind::PeerClosed => "closed by the peer",
            CloseKind::Reset => "reset by the peer",
            CloseKind::Local => "closed locally",
            CloseKind::Aborted => "aborted locally",
            CloseKind::IdleTimedOut => "idle timeout passed",
            CloseKind::LingerTimedOut => "linger deadline passed with unsent data",
            CloseKind::Shutdown => "closed by close_all",
            CloseKind::Failed => "failed",
        })?;
        if let Some(errno) = self.errno {
            write!(f, ": {errno}")?;
        }
        if self.unsent_bytes > 0 {
            write!(f, " ({} bytes unsent)", self.unsent_bytes)?;
        }
        Ok(())
    }
}

/// The buffer into which [`Engine::poll`](crate::Engine::poll) puts completions. It never grows
/// beyond its capacity.
///
/// Make one and reuse it for each poll. Completions that are not taken out stay in the buffer and
/// count against its capacity in the next poll.
///
/// ```
/// use proactor::{Completions, Config, Engine, Event};
/// use std::time::Duration;
/// let mut engine = Engine::new(Config::default())?;
/// let mut completions = Completions::with_capacity(256);
/// engine.timer_after(Duration::from_millis(1), 7)?;
/// engine.poll(&mut completions, None)?;
/// for completion in completions.drain() {
///     assert!(matches!(completion.event, Event::Timer { .. }));
///     assert_eq!(completion.tag, 7);
/// }
/// assert!(completions.is_empty());
/// # Ok::<(), proactor::Error>(())
/// ```
#[derive(Debug)]
pub struct Completions {
    list: VecDeque<Completion>,
    capacity: usize,
}

impl Completions {
    /// A buffer for at most `capacity` completions.
    ///
    /// A large capacity (hundreds) needs fewer polls, and sends to one connection are batched. With
    /// a small one, the caller answers the first completions of a burst before the last are
    /// received.
    ///
    /// # Backends
    /// On epoll a poll receives only what it reports. A capacity of 8 lowers the tail latency of a
    /// busy server by some percent, for at most 4% more CPU time. On io_uring the kernel has
    /// received all data before the poll returns. A small capacity then only costs system calls.
    ///
    /// # Panics
    /// If `capacity` is zero.
    pub fn with_capacity(capacity: usize) -> Completions {
        assert!(capacity > 0, "the capacity of a buffer of completions is at least 1");
        Completions { list: VecDeque::with_capacity(capacity), capacity }
    }

    /// Removes all completions and returns an iterator over them. Dropping the iterator drops those
    /// that it has not returned.
    pub fn drain(&mut self) -> vec_deque::Drain<'_, Completion> {
        self.list.drain(..)
    }

    /// Removes and returns the oldest completion.
    pub fn pop(&mut self) -> Option<Completion> {
        self.list.pop_front()
    }

    /// An iterator over the completions, from the oldest.
    pub fn iter(&self) -> vec_deque::Iter<'_, Completion> {
        self.list.iter()
    }

    /// The number of completions.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The maximum number of completions.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= self.capacity
    }

    pub(crate) fn push(&mut self, completion: Completion) {
        self.list.push_back(completion);
    }
}

impl<'a> IntoIterator for &'a Completions {
    type Item = &'a Completion;
    type IntoIter = vec_deque::Iter<'a, Completion>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
