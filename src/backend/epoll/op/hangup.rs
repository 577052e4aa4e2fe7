//! Watching for a hang-up. Owns: a bit of the slot; each descriptor is registered for EPOLLRDHUP
//! from the start, and EPOLLHUP and EPOLLERR come unasked (epoll_ctl(2)). Must not know: whether
//! reads are paused.

use super::super::{EpollBackend, Outcome, bit};
use crate::backend::Started;
use crate::error::Errno;
use crate::id::Key;

impl EpollBackend {
    pub(in super::super) fn start_watch(&mut self, key: Key) -> Started {
        let slot = self.slot(key);
        assert_eq!(slot.state & bit::HANGUP, 0, "one watch at a time");
        slot.state |= bit::HANGUP;
        self.note_hangup(key);
        Started::InFlight
    }

    /// Completes a watch if the peer has hung up.
    pub(in super::super) fn note_hangup(&mut self, key: Key) {
        let slot = self.slot(key);
        if slot.state & bit::HUNG_UP != 0 && slot.state & bit::HANGUP != 0 {
            slot.state &= !bit::HANGUP;
            self.complete(key, Outcome::HungUp(Ok(())));
        }
    }

    pub(super) fn cancel_watch(&mut self, key: Key) {
        if self.disarm(key, bit::HANGUP) {
            self.complete(key, Outcome::HungUp(Err(Errno(libc::ECANCELED))));
        }
    }
}
