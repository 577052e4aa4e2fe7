//! Accept: ACCEPT, multishot where the kernel has it (5.19); in tier `polled` a POLL_ADD first.
//! Owns: its SQEs and the meaning of their CQEs. Invariant: a descriptor in a CQE becomes an
//! `OwnedFd` before anything else happens.

use crate::backend::uring::Uring;
use crate::backend::uring::slot::flag;
use crate::backend::uring::sqe::{PlainSqe, owned_fd};
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, Operation, Outcome, Started};
use crate::error::{Errno, Violation};
use crate::id::Key;
use std::os::fd::OwnedFd;

impl Uring {
    pub(in crate::backend::uring) fn start_accept(&mut self, key: Key) -> Started {
        if self.ring.make_room().is_err() {
            return Started::NoRoom(Operation::Accept);
        }
        let kind = if self.features.polled { Kind::AcceptPoll } else { Kind::Accept };
        if !self.slot(key).has(flag::LISTENER) {
            // A connection: its connect may be in flight, and both use `Slot::open`.
            self.complete(key, Outcome::AcceptFailed(Errno(libc::EINVAL)));
            return Started::InFlight;
        }
        self.slot(key).clear_cancel(OpKind::Accept);
        self.push_accept(key, kind);
        Started::InFlight
    }

    /// Call `Ring::make_room` first.
    pub(super) fn push_accept(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        let sqe = match kind {
            Kind::AcceptPoll => PlainSqe::poll(fd, libc::POLLIN),
            _ => PlainSqe::accept(fd, self.features.multishot_accept),
        };
        self.ring.push_plain(sqe, pack(kind, key));
        self.slot(key).open = kind;
    }

    pub(in crate::backend::uring) fn accept_completed(
        &mut self,
        key: Key,
        result: i32,
        more: bool,
    ) -> Option<Completed<OwnedFd>> {
        if more && result < 0 {
            self.fail(Violation("F_MORE on an accept that failed"));
            return None;
        }
        if result == -libc::EAGAIN && self.features.polled {
            self.continue_op(key, Kind::AcceptPoll);
            return None;
        }
        let outcome = match owned_fd(result) {
            Some(fd) => Outcome::Accepted(fd),
            None => Outcome::AcceptFailed(Errno(result.saturating_neg())),
        };
        Some(Completed { key, more, outcome })
    }

    /// Tier `polled`: the poll completed. A connection is in the backlog.
    pub(in crate::backend::uring) fn accept_polled(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        if result < 0 {
            return Some(Completed::last(
                key,
                Outcome::AcceptFailed(Errno(result.saturating_neg())),
            ));
        }
        self.continue_op(key, Kind::Accept);
        None
    }
}
