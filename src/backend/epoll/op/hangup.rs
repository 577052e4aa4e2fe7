//! Waiting for a hang-up. Owns: [`bit::WATCH_HANGUP`]. Each descriptor is registered for
//! EPOLLRDHUP, and epoll always reports EPOLLHUP and EPOLLERR (epoll_ctl(2)), so no system call is
//! needed. Must not know: whether reads are paused.

use super::super::{EpollBackend, Outcome, bit};
use crate::backend::Started;
use crate::error::Errno;
use crate::id::Key;

impl EpollBackend {
    pub(in super::super) fn start_hangup(&mut self, key: Key) -> Started {
        let slot = self.slot(key);
        assert_eq!(slot.state & bit::WATCH_HANGUP, 0, "a WatchHangup is in flight");
        slot.state |= bit::WATCH_HANGUP;
        self.check_hangup(key);
        Started::InFlight
    }

    /// Completes a `WatchHangup` if the peer has hung up.
    pub(in super::super) fn check_hangup(&mut self, key: Key) {
        let slot = self.slot(key);
        if slot.state & bit::HUNG_UP != 0 && slot.state & bit::WATCH_HANGUP != 0 {
            slot.state &= !bit::WATCH_HANGUP;
            self.complete(key, Outcome::HungUp(Ok(())));
        }
    }

    pub(super) fn cancel_hangup(&mut self, key: Key) {
        if self.disarm(key, bit::WATCH_HANGUP) {
            self.complete(key, Outcome::HungUp(Err(Errno(libc::ECANCELED))));
        }
    }
}
