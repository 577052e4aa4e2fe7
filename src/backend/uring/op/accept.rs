//! Accepting: ACCEPT, multishot where the kernel has it (5.19); in tier `polled` POLL_ADD first.
//! Owns: its entries and what their completions mean. Invariant: a descriptor in a completion is
//! owned before anything else happens.

use crate::backend::uring::Uring;
use crate::backend::uring::entry::{Plain, descriptor};
use crate::backend::uring::slot::mark;
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
        let kind = if self.style.polled { Kind::AcceptPoll } else { Kind::Accept };
        if !self.slot(key).has(mark::LISTENS) {
            // It would take the place of a connect in flight.
            self.finish(key, Outcome::AcceptFailed(Errno(libc::EINVAL)));
            return Started::InFlight;
        }
        self.slot(key).unstop(OpKind::Accept);
        self.push_accept(key, kind);
        Started::InFlight
    }

    /// Room must have been made.
    pub(super) fn push_accept(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        let entry = match kind {
            Kind::AcceptPoll => Plain::poll(fd, libc::POLLIN),
            _ => Plain::accept(fd, self.style.multishot_accept),
        };
        self.ring.push_plain(entry, pack(kind, key));
        self.slot(key).open = kind;
    }

    pub(in crate::backend::uring) fn accepted(
        &mut self,
        key: Key,
        result: i32,
        more: bool,
    ) -> Option<Completed<OwnedFd>> {
        if more && result < 0 {
            self.fail(Violation("an accept goes on without a connection"));
            return None;
        }
        if result == -libc::EAGAIN && self.style.polled {
            self.step(key, Kind::AcceptPoll);
            return None;
        }
        let outcome = match descriptor(result) {
            Some(fd) => Outcome::Accepted(fd),
            None => Outcome::AcceptFailed(Errno(result.saturating_neg())),
        };
        Some(Completed { key, more, outcome })
    }

    /// Tier `polled`: somebody waits to be accepted.
    pub(in crate::backend::uring) fn acceptable(
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
        self.step(key, Kind::Accept);
        None
    }
}
