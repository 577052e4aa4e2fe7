//! Parked connections: those that wait for a receive buffer. Owns: their queue. Invariant: first
//! in, first out; at most as many are unparked as buffers are free. Must not know the buffers.

use super::Core;
use super::conn::flag;
use crate::id::Key;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Parking(VecDeque<Key>);

impl Parking {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(feature = "sim")]
    pub(super) fn contains(&self, key: Key) -> bool {
        self.0.contains(&key)
    }
}

impl Core {
    /// A receive failed with ENOBUFS: parks the connection.
    pub(super) fn park(&mut self, key: Key) {
        self.stats.pool_exhausted += 1;
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if !conn.has(flag::PARKED) {
            conn.set(flag::PARKED);
            self.parking.0.push_back(key);
        }
    }

    /// Unparks at most as many connections as there are free buffers.
    pub(super) fn unpark(&mut self, free_buffers: usize) {
        for _ in 0..free_buffers.min(self.parking.0.len()) {
            let Some(key) = self.parking.0.pop_front() else { return };
            if let Some(conn) = self.endpoints.conn_mut(key) {
                conn.unset(flag::PARKED);
                self.staging.add(conn, key);
            }
        }
    }
}
