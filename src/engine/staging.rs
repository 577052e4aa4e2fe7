//! Staged endpoints: those that have something to submit. Owns: their lists, and the event fd that
//! signals them to another event loop. Invariant: an endpoint is on its list exactly while its flag
//! for it is set. Must not know what is submitted.

use super::accept::Listener;
use super::conn::{Conn, flag};
use crate::id::Key;
use crate::waker::EventFd;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Staging {
    conns: VecDeque<Key>,
    listeners: VecDeque<Key>,
    /// Set after `Engine::as_fd`: signalled when an endpoint is staged.
    event_fd: Option<Arc<EventFd>>,
    /// The event fd was signalled since the last poll.
    signalled: bool,
}

impl Staging {
    /// Stages a connection.
    #[inline]
    pub(super) fn add(&mut self, conn: &mut Conn, key: Key) {
        if !conn.has(flag::STAGED) {
            conn.set(flag::STAGED);
            self.conns.push_back(key);
            self.signal();
        }
    }

    pub(super) fn add_listener(&mut self, listener: &mut Listener, key: Key) {
        if listener.set_staged() {
            self.listeners.push_back(key);
            self.signal();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.conns.is_empty() && self.listeners.is_empty()
    }

    pub(super) fn conns_len(&self) -> usize {
        self.conns.len()
    }

    /// The next staged connection. The caller clears its flag.
    #[inline]
    pub(super) fn pop_conn(&mut self) -> Option<Key> {
        self.conns.pop_front()
    }

    pub(super) fn listeners_len(&self) -> usize {
        self.listeners.len()
    }

    pub(super) fn pop_listener(&mut self) -> Option<Key> {
        self.listeners.pop_front()
    }

    #[cfg(feature = "sim")]
    pub(super) fn contains(&self, conn: Key) -> bool {
        self.conns.contains(&conn)
    }

    pub(super) fn set_event_fd(&mut self, event_fd: Arc<EventFd>) {
        self.event_fd = Some(event_fd);
    }

    pub(super) fn has_event_fd(&self) -> bool {
        self.event_fd.is_some()
    }

    /// Makes the descriptor of `Engine::as_fd` readable.
    #[inline]
    pub(super) fn signal(&mut self) {
        if let Some(event_fd) = self.event_fd.as_ref().filter(|_| !self.signalled) {
            self.signalled = true;
            event_fd.signal();
        }
    }

    pub(super) fn clear_signalled(&mut self) {
        self.signalled = false;
    }
}
