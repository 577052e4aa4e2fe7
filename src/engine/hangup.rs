//! Hang-ups of connections with paused reads. Owns: when a watch (`WatchHangup`) is started, and
//! how its completion is handled. Invariant: `HungUp` is emitted at most once per connection, and
//! only while reads are paused; otherwise a receive reports the end. Must not know how a backend
//! detects a hang-up.
//!
//! A watch in flight is not cancelled when reads are resumed: the next pause uses it.

use super::conn::{Conn, flag};
use super::{Core, Full};
use crate::backend::{Backend, OpKind, Operation, Started};
use crate::completion::{Completions, Event};
use crate::error::Errno;
use crate::id::Key;

impl Conn {
    /// Only a watch can report that the peer has hung up.
    fn wants_watch(&self) -> bool {
        self.is_open()
            && self.has(flag::PAUSED)
            && !self.is_receiving_into()
            && !self.has(flag::HANGUP_REPORTED)
    }
}

impl Core {
    /// Starts a watch if one is needed. If the end of the stream was received already, emits
    /// `HungUp` at once.
    pub(super) fn service_hangup<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), Full> {
        let Some(conn) = self.endpoints.conn_mut(key).filter(|conn| conn.wants_watch()) else {
            return Ok(());
        };
        if conn.has(flag::READ_CLOSED) {
            self.emit_hung_up(key, out);
            return Ok(());
        }
        if conn.in_flight(OpKind::Hangup) || conn.in_flight(OpKind::Recv) {
            return Ok(());
        }
        match backend.start(key, Operation::WatchHangup) {
            Started::NoRoom(_) => Err(Full),
            Started::InFlight | Started::Done | Started::Sent(..) => {
                conn.started(OpKind::Hangup);
                Ok(())
            }
        }
    }

    /// A watch completed.
    pub(super) fn hung_up(&mut self, key: Key, result: Result<(), Errno>, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.ended(OpKind::Hangup);
        self.staging.add(conn, key);
        if conn.wants_watch() && result.is_ok() {
            self.emit_hung_up(key, out);
        }
    }

    fn emit_hung_up(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.set(flag::HANGUP_REPORTED);
        self.emit(key, Event::HungUp, out);
    }
}
