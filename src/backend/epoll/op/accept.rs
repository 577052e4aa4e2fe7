//! Accepting. Owns: accept4(2). Invariants: an armed accept stays armed until it is cancelled or
//! fails; an accepted descriptor is an `OwnedFd` at once. Must not know: limits of the engine.
#![allow(unsafe_code)]

use super::super::{Completed, EpollBackend, Outcome, bit};
use crate::backend::Started;
use crate::error::Errno;
use crate::id::Key;
use std::os::fd::{FromRawFd, OwnedFd};

impl EpollBackend {
    pub(in super::super) fn start_accept(&mut self, key: Key) -> Started {
        self.arm(key, bit::ACCEPT, bit::ACCEPT);
        Started::InFlight
    }

    /// Accepts one connection. `None`: the backlog is empty.
    pub(in super::super) fn accept(&mut self, key: Key) -> Option<Completed<OwnedFd>> {
        let fd = self.slot(key).raw_fd();
        loop {
            self.stats.syscalls += 1;
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let none = std::ptr::null_mut();
            // SAFETY: both pointers are null: the address of the peer is not returned.
            let accepted = unsafe { libc::accept4(fd, none, std::ptr::null_mut(), flags) };
            if accepted >= 0 {
                // SAFETY: accept4 has just created this descriptor, so it has no other owner.
                let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
                return Some(Completed { key, more: true, outcome: Outcome::Accepted(socket) });
            }
            match Errno::last() {
                // A signal, or the peer reset the connection before it was accepted.
                Errno(libc::EINTR | libc::ECONNABORTED) => continue,
                Errno(libc::EAGAIN) => {
                    self.slot(key).state &= !bit::READABLE;
                    return None;
                }
                errno => {
                    self.slot(key).state &= !bit::ACCEPT;
                    return Some(Completed::last(key, Outcome::AcceptFailed(errno)));
                }
            }
        }
    }

    pub(super) fn cancel_accept(&mut self, key: Key) {
        if self.disarm(key, bit::ACCEPT) {
            self.complete(key, Outcome::AcceptFailed(Errno(libc::ECANCELED)));
        }
    }
}
