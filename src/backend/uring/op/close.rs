//! Closing: CLOSE, of connections and listeners. Owns: the end of a slot. Invariant: when the entry
//! is staged, no other is in flight for the slot, and the descriptor is the kernel's to close.

use crate::backend::uring::Uring;
use crate::backend::uring::entry::Plain;
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
        let fd = if self.known(key).is_some() { self.slot(key).fd.take() } else { None };
        let Some(fd) = fd else {
            // A connect that never got a socket, or never started.
            self.end_slot(key);
            self.finish(key, Outcome::Closed);
            return Started::InFlight;
        };
        if mode == CloseMode::Reset {
            self.stats.syscalls += 1;
            socket::reset_on_close(&fd);
        }
        self.ring.push_plain(Plain::close(fd), pack(Kind::Close, key));
        self.slot(key).open = Kind::Close;
        Started::InFlight
    }

    pub(in crate::backend::uring) fn closed(&mut self, key: Key) -> Option<Completed<OwnedFd>> {
        self.end_slot(key);
        Some(Completed::last(key, Outcome::Closed))
    }

    fn end_slot(&mut self, key: Key) {
        if self.known(key).is_some() {
            let slot = self.slot(key);
            debug_assert!(slot.batch.is_none(), "nothing is in flight when a close starts");
            slot.generation = 0;
        }
    }
}
