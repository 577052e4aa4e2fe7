//! The close of connections and listeners. Owns: the end of a key. Invariant: nothing of the key
//! stays in the backend but its completion. It is over at once, so there is nothing to cancel.

use super::super::{EpollBackend, Outcome};
use crate::backend::{CloseMode, Started};
use crate::id::Key;
use crate::net::socket;

impl EpollBackend {
    pub(in super::super) fn close(&mut self, key: Key, mode: CloseMode) -> Started {
        // A key that was never started has no slot.
        if self.find(key).is_some()
            && let Some(fd) = self.vacate(key)
        {
            if mode == CloseMode::Reset {
                self.stats.syscalls += 1;
                socket::reset_on_close(&fd);
            }
            // The registration goes with the descriptor. A duplicate elsewhere (in a forked child,
            // say) keeps it alive: then edges of a key that nobody knows are counted and dropped,
            // until the duplicate is closed.
            self.stats.syscalls += 1;
            drop(fd);
        }
        self.complete(key, Outcome::Closed);
        Started::InFlight
    }
}
