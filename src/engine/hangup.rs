//! Hang-ups of paused connections. Owns: when a watch is in flight, and what its completion means.
//! Invariant: a connection tells of a hang-up once, and only while its reads are paused, as
//! otherwise a receive tells of it.
//!
//! A watch that is in flight when reads are resumed stays: it costs nothing, and the next pause
//! needs none.

use super::conn::{Conn, flag};
use super::{Core, Full};
use crate::backend::{Backend, OpKind, Operation, Started};
use crate::completion::{Completions, Event};
use crate::error::Errno;
use crate::id::Key;

impl Conn {
    /// Nothing but a watch would notice that the peer has gone.
    fn wants_watch(&self) -> bool {
        self.is_open()
            && self.has(flag::PAUSED)
            && !self.is_receiving_into()
            && !self.has(flag::HANGUP_REPORTED)
    }
}

impl Core {
    /// Starts a watch if one is wanted. The end of the stream that is held back already is a
    /// hang-up too.
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

    /// A watch ended.
    pub(super) fn hung_up(&mut self, key: Key, result: Result<(), Errno>, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.ended(OpKind::Hangup);
        self.staging.mark(conn, key);
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
