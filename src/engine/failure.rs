//! The end of an engine whose kernel cannot be believed. Owns: what the caller is told then.
//! Invariant: every connection and listener ends with its terminal event, and after those every
//! call is an error.

use super::Core;
use crate::completion::{CloseKind, Completions};
use crate::error::{Errno, Error};

#[cfg(test)]
mod tests;

impl Core {
    /// The backend has failed: all that is open ends with it. The events come in this poll and, as
    /// far as there is no room, in those after it.
    #[cold]
    pub(super) fn fail(&mut self, what: &'static str, out: &mut Completions) {
        self.failed = Some(what);
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

    /// The poll of a failed engine: what waits to be told, then the error.
    pub(super) fn poll_failed(
        &mut self,
        what: &'static str,
        out: &mut Completions,
    ) -> Result<usize, Error> {
        let before = out.len();
        self.deliver_deferred(usize::MAX, out);
        self.send_memory.drop_retired();
        match out.len() - before {
            0 => Err(Error::EngineFailed(what)),
            told => Ok(told),
        }
    }
}
