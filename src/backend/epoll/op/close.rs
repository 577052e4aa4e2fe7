//! Closing connections and listeners. Owns: the end of a key. Invariant: after a close the backend
//! has no state for the key but its completion. close(2) completes at once, so a close cannot be
//! cancelled.

use super::super::{EpollBackend, Outcome};
use crate::backend::{CloseMode, Started};
use crate::id::Key;
use crate::net::socket;

impl EpollBackend {
    pub(in super::super) fn close(&mut self, key: Key, mode: CloseMode) -> Started {
        // A key that was never opened has no slot.
        if self.find(key).is_some()
            && let Some(fd) = self.vacate(key)
        {
            if mode == CloseMode::Reset {
                self.stats.syscalls += 1;
                socket::reset_on_close(&fd);
            }
            // The registration ends with the last descriptor of the socket (epoll(7)). A duplicate,
            // for instance in a forked child, keeps it: until that is closed, edges of the unknown
            // key are counted and dropped.
            self.stats.syscalls += 1;
            drop(fd);
        }
        self.complete(key, Outcome::Closed);
        Started::InFlight
    }
}
