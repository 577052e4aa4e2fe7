//! What `poll` hands out. Owns: the events, the reasons of an end, and the caller's buffer of
//! completions.

use crate::buf::Lease;
use crate::error::Errno;
use crate::id::{ConnId, ListenerId, TimerId};
use bytes::BytesMut;
use std::collections::VecDeque;
use std::collections::vec_deque;
use std::fmt;

/// One thing that happened.
#[derive(Debug)]
pub struct Completion {
    /// The connection it happened to; [`ConnId::NONE`] for events of listeners, timers and wakers.
    pub conn: ConnId,
    /// The tag that the caller gave the connection ([`Engine::set_tag`](crate::Engine::set_tag)),
    /// the listener or the timer; else 0.
    pub tag: u64,
    /// What happened.
    pub event: Event,
}

/// What can happen.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A listener accepted a connection: it is `Completion::conn`. Ask
    /// [`Engine::peer_addr`](crate::Engine::peer_addr) who it is.
    Accepted {
        /// The listener that accepted it.
        listener: ListenerId,
    },
    /// A connection that [`Engine::connect`](crate::Engine::connect) asked for is open.
    Connected,
    /// Bytes arrived. Dropping the lease gives its buffer back to the pool.
    Received(Lease),
    /// The buffer given to [`Engine::recv_into`](crate::Engine::recv_into) comes back: full, or
    /// shorter if the stream ended first.
    Filled(BytesMut),
    /// The peer sends no more (its FIN arrived). Writing still works until it is closed here.
    ReadClosed,
    /// Reads are paused, and the peer sent its FIN or reset the connection. Told once per
    /// connection, in the first poll after it happened (or after the pause, if it happened before);
    /// perhaps when reads were resumed meanwhile. What the peer sent before is still there, and
    /// comes when reads are resumed, with its end: [`Event::ReadClosed`] or [`Event::Closed`]. A
    /// peer that only sent its FIN may still read: a FIN does not tell a half-close from a close.
    ///
    /// # Backends
    /// A POLL_ADD for POLLRDHUP on io_uring (5.6), EPOLLRDHUP on epoll (poll(2), epoll_ctl(2)).
    HungUp,
    /// A send queued with [`Engine::send_tagged`](crate::Engine::send_tagged) was handed to the
    /// kernel in full.
    Sent {
        /// The tag given with the send.
        tag: u64,
    },
    /// The send queue had reached its high watermark and fell to the low one: sending is welcome
    /// again.
    Drained,
    /// The end. Each connection gets this once, and nothing after it.
    Closed(CloseReason),
    /// A timer fired. Its tag is `Completion::tag`.
    Timer {
        /// The timer; its id is stale from now on.
        id: TimerId,
    },
    /// Somebody called [`Waker::wake`](crate::Waker::wake) since the last poll, once or often.
    Woken,
    /// Accepting is suspended: out of descriptors or memory, or at `Config::connections_max`.
    /// Connections wait in the kernel's backlog.
    ListenerPaused {
        /// The listener.
        listener: ListenerId,
        /// EMFILE, ENFILE, ENOBUFS or ENOMEM; `None` at the limit of connections.
        errno: Option<Errno>,
    },
    /// Accepting goes on.
    ListenerResumed {
        /// The listener.
        listener: ListenerId,
    },
    /// The listener's socket is closed, and its id stale.
    ListenerClosed {
        /// The listener.
        listener: ListenerId,
        /// The error that ended it, if it was not closed by the caller. EIO if the engine has
        /// failed.
        errno: Option<Errno>,
    },
}

/// Why and how a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// The cause.
    pub kind: CloseKind,
    /// The kernel's error number, where there was one.
    pub errno: Option<Errno>,
    /// Bytes that were queued for sending and never handed to the kernel.
    pub unsent_bytes: u64,
}

/// The cause of the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseKind {
    /// Connect: nobody listens there (ECONNREFUSED; for a unix path also ENOENT).
    Refused,
    /// Connect: no route, network or host down.
    Unreachable,
    /// Connect: the timeout of the options, or the kernel's own, passed.
    ConnectTimedOut,
    /// Connect: any other refusal, for instance EMFILE, EACCES or EADDRNOTAVAIL.
    ConnectFailed,
    /// The peer closed first, in good order.
    PeerClosed,
    /// The peer reset the connection, or it broke.
    Reset,
    /// `close` was called here, before the peer closed.
    Local,
    /// `abort` was called here.
    Aborted,
    /// Neither side sent anything for the idle timeout.
    IdleTimedOut,
    /// `close` was called, and the peer did not take all queued bytes before the linger deadline.
    LingerTimedOut,
    /// [`Engine::close_all`](crate::Engine::close_all) closed it.
    Shutdown,
    /// An error of the kernel that fits none of the above; or the engine itself has failed
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
            CloseKind::Local => "closed here",
            CloseKind::Aborted => "aborted here",
            CloseKind::IdleTimedOut => "idle for too long",
            CloseKind::LingerTimedOut => "peer did not take all data before the linger deadline",
            CloseKind::Shutdown => "engine shut down",
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

/// The buffer that [`Engine::poll`](crate::Engine::poll) fills, never beyond its capacity. Made
/// once, used again.
///
/// What is not drained stays, and takes up capacity in the next poll.
#[derive(Debug)]
pub struct Completions {
    list: VecDeque<Completion>,
    capacity: usize,
}

impl Completions {
    /// A buffer for at most `capacity` completions a poll. Hundreds let an engine gather what many
    /// connections send to one, and make turns rare; with few, the first of a burst is answered
    /// before the last is looked at.
    ///
    /// # Backends
    /// On epoll a poll receives what it tells, so that a capacity of 8 takes some percent off the
    /// slowest answers of a busy server, for at most 4% of CPU. On io_uring the kernel has received
    /// all of them by then, and a small capacity only costs system calls.
    ///
    /// # Panics
    /// If `capacity` is zero.
    pub fn with_capacity(capacity: usize) -> Completions {
        assert!(capacity > 0, "a buffer of no completions would stop the engine");
        Completions { list: VecDeque::with_capacity(capacity), capacity }
    }

    /// Takes all completions out. Those not consumed when the iterator is dropped are dropped with
    /// it.
    pub fn drain(&mut self) -> vec_deque::Drain<'_, Completion> {
        self.list.drain(..)
    }

    /// Takes the oldest completion out.
    pub fn pop(&mut self) -> Option<Completion> {
        self.list.pop_front()
    }

    /// The completions in it.
    pub fn iter(&self) -> vec_deque::Iter<'_, Completion> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The most it holds.
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
