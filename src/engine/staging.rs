//! What waits to be started. Owns: the lists of connections and listeners that want something of
//! the backend, and the signal to a foreign loop that there are some. Invariant: an endpoint is on
//! its list exactly while it is marked dirty.

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
    /// Set when the engine is polled from a foreign loop, which must hear of what is staged.
    foreign: Option<Arc<EventFd>>,
    kicked: bool,
}

impl Staging {
    /// Puts a connection on the list.
    #[inline]
    pub(super) fn mark(&mut self, conn: &mut Conn, key: Key) {
        if !conn.has(flag::DIRTY) {
            conn.set(flag::DIRTY);
            self.conns.push_back(key);
            self.kick();
        }
    }

    pub(super) fn mark_listener(&mut self, listener: &mut Listener, key: Key) {
        if listener.mark_dirty() {
            self.listeners.push_back(key);
            self.kick();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.conns.is_empty() && self.listeners.is_empty()
    }

    pub(super) fn conns_len(&self) -> usize {
        self.conns.len()
    }

    /// The next connection; the caller takes its mark away.
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
    pub(super) fn lists(&self, conn: Key) -> bool {
        self.conns.contains(&conn)
    }

    pub(super) fn set_foreign(&mut self, event_fd: Arc<EventFd>) {
        self.foreign = Some(event_fd);
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    /// Tells a foreign loop that `poll` has something to do.
    #[inline]
    pub(super) fn kick(&mut self) {
        if let Some(event_fd) = self.foreign.as_ref().filter(|_| !self.kicked) {
            self.kicked = true;
            event_fd.signal();
        }
    }

    pub(super) fn unkick(&mut self) {
        self.kicked = false;
    }
}
