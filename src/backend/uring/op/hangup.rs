//! Watching for a hang-up: POLL_ADD, on all tiers. Owns: its entry and what its completion means.
//! The poll stays armed while data comes and goes: io_uring polls for POLLRDHUP, POLLHUP and
//! POLLERR whatever is asked for, and nothing else wakes it.

use crate::backend::uring::Uring;
use crate::backend::uring::entry::Plain;
use crate::backend::uring::op::status;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, Operation, Outcome, Started};
use crate::id::Key;
use std::os::fd::OwnedFd;

impl Uring {
    pub(in crate::backend::uring) fn start_watch(&mut self, key: Key) -> Started {
        if self.ring.make_room().is_err() {
            return Started::NoRoom(Operation::WatchHangup);
        }
        let entry = Plain::poll(self.fd_of(key), libc::POLLRDHUP);
        self.ring.push_plain(entry, pack(Kind::Hangup, key));
        let slot = self.slot(key);
        slot.unstop(OpKind::Hangup);
        slot.hangup = Kind::Hangup;
        Started::InFlight
    }

    pub(in crate::backend::uring) fn hung_up(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        Some(Completed::last(key, Outcome::HungUp(status(result))))
    }

    /// Ends a watch whose key is given up: its completion is nobody's then. False if there is no
    /// room for that.
    pub(in crate::backend::uring) fn abandon_watch(&mut self, key: Key) -> bool {
        if self.slot(key).hangup == Kind::Idle {
            return true;
        }
        if self.ring.make_room().is_err() {
            return false;
        }
        self.cancel_op(key, OpKind::Hangup);
        self.abandoned_watches += 1;
        true
    }
}
