//! Hang-up watch: POLL_ADD for POLLRDHUP, on all tiers. Owns: its SQE and the meaning of its CQE.
//! Invariant: the poll reads no byte and no error from the socket. It stays armed while data
//! arrives and is read: only POLLRDHUP, POLLHUP and POLLERR complete it.

use crate::backend::uring::Uring;
use crate::backend::uring::op::status;
use crate::backend::uring::sqe::PlainSqe;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, Operation, Outcome, Started};
use crate::id::Key;
use std::os::fd::OwnedFd;

impl Uring {
    pub(in crate::backend::uring) fn start_watch(&mut self, key: Key) -> Started {
        if self.ring.make_room().is_err() {
            return Started::NoRoom(Operation::WatchHangup);
        }
        let sqe = PlainSqe::poll(self.fd_of(key), libc::POLLRDHUP);
        self.ring.push_plain(sqe, pack(Kind::Hangup, key));
        let slot = self.slot(key);
        slot.clear_cancel(OpKind::Hangup);
        slot.hangup = Kind::Hangup;
        Started::InFlight
    }

    pub(in crate::backend::uring) fn hangup_completed(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        Some(Completed::last(key, Outcome::HungUp(status(result))))
    }

    /// Cancels the watch of a connection that is released. Its completion is dropped. False if the
    /// submission queue has no room.
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
