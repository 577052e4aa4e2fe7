//! Close: CLOSE, for connections and listeners. Owns: its SQE and the release of the slot.
//! Invariant: when the CLOSE is staged, no other SQE of the slot is in flight, and the kernel owns
//! the descriptor. Must not know why a connection ends.

use crate::backend::uring::Uring;
use crate::backend::uring::sqe::PlainSqe;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{CloseMode, Completed, Operation, Outcome, Started};
use crate::id::Key;
use crate::net::socket;
use std::os::fd::OwnedFd;

impl Uring {
    pub(in crate::backend::uring) fn start_close(&mut self, key: Key, mode: CloseMode) -> Started {
        if self.ring.make_room().is_err() {
            return Started::NoRoom(Operation::Close(mode));
        }
        let fd = if self.find_slot(key).is_some() { self.slot(key).fd.take() } else { None };
        let Some(fd) = fd else {
            // A connect that has no socket: it failed early or did not start.
            self.free_slot(key);
            self.complete(key, Outcome::Closed);
            return Started::InFlight;
        };
        if mode == CloseMode::Reset {
            self.stats.syscalls += 1;
            socket::reset_on_close(&fd);
        }
        self.ring.push_plain(PlainSqe::close(fd), pack(Kind::Close, key));
        self.slot(key).open = Kind::Close;
        Started::InFlight
    }

    pub(in crate::backend::uring) fn close_completed(
        &mut self,
        key: Key,
    ) -> Option<Completed<OwnedFd>> {
        self.free_slot(key);
        Some(Completed::last(key, Outcome::Closed))
    }

    fn free_slot(&mut self, key: Key) {
        if self.find_slot(key).is_some() {
            let slot = self.slot(key);
            debug_assert!(slot.batch.is_none(), "nothing is in flight when a close starts");
            slot.generation = 0;
        }
    }
}
