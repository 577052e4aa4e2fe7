//! The failure of an engine: the kernel reported something impossible. Owns: how the engine ends
//! then. Invariant: each connection and listener gets its terminal event, and every call after
//! these is an error. Must not know what the backend found.

use super::Core;
use crate::completion::{CloseKind, Completions};
use crate::error::{Errno, Error};

#[cfg(test)]
mod tests;

impl Core {
    /// The backend has failed: ends all connections and listeners. Events for which `out` has no
    /// room are delivered by later polls.
    #[cold]
    pub(super) fn fail(&mut self, violation: &'static str, out: &mut Completions) {
        self.failed = Some(violation);
        for key in self.endpoints.conn_keys() {
            if let Some(conn) = self.endpoints.conn_mut(key) {
                conn.replace_reason(CloseKind::Failed, None);
            }
            self.end_conn(key, out);
        }
        for key in self.endpoints.listener_keys() {
            if let Some(listener) = self.endpoints.listener_mut(key) {
                listener.fail(Errno(libc::EIO));
            }
            self.end_listener(key, out);
        }
        self.timers.clear(self.number.number());
    }

    /// The poll of a failed engine: the deferred events, then the error.
    pub(super) fn poll_failed(
        &mut self,
        violation: &'static str,
        out: &mut Completions,
    ) -> Result<usize, Error> {
        let before = out.len();
        self.deliver_deferred(usize::MAX, out);
        self.send_memory.drop_retired();
        match out.len() - before {
            0 => Err(Error::EngineFailed(violation)),
            added => Ok(added),
        }
    }
}
