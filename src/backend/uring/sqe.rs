//! Submission queue entries that reference no memory. Owns: [`PlainSqe`], which only this module
//! can make. Invariant: the kernel reads and writes no user memory for such an SQE, so that safe
//! code may stage it. Must not know which operation an SQE serves.

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

pub(super) struct PlainSqe(Entry);

impl PlainSqe {
    /// POLL_ADD, one-shot: completes when one of these events of poll(2) is set.
    pub(super) fn poll(fd: types::Fd, events: libc::c_short) -> PlainSqe {
        PlainSqe(opcode::PollAdd::new(fd, events as u32).build())
    }

    pub(super) fn poll_fd(fd: BorrowedFd<'_>, events: libc::c_short) -> PlainSqe {
        PlainSqe::poll(types::Fd(fd.as_raw_fd()), events)
    }

    /// ACCEPT without an address: all completions of a multishot accept would share its memory.
    pub(super) fn accept(fd: types::Fd, multishot: bool) -> PlainSqe {
        let (no_addr, flags) = (std::ptr::null_mut(), libc::SOCK_CLOEXEC);
        PlainSqe(match multishot {
            true => opcode::AcceptMulti::new(fd).flags(flags).build(),
            false => opcode::Accept::new(fd, no_addr, no_addr.cast()).flags(flags).build(),
        })
    }

    /// SOCKET: a TCP or unix stream socket.
    pub(super) fn socket(domain: libc::c_int) -> PlainSqe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        PlainSqe(opcode::Socket::new(domain, kind, libc::IPPROTO_TCP).build())
    }

    pub(super) fn close(fd: OwnedFd) -> PlainSqe {
        PlainSqe(opcode::Close::new(types::Fd(fd.into_raw_fd())).build())
    }

    /// ASYNC_CANCEL by user_data. A cancel by descriptor could hit a new socket that reuses the
    /// number.
    pub(super) fn cancel(target: u64) -> PlainSqe {
        PlainSqe(opcode::AsyncCancel::new(target).build())
    }

    pub(super) fn into_entry(self, user_data: u64) -> Entry {
        self.0.user_data(user_data)
    }
}

/// The new descriptor that the CQE of an ACCEPT or a SOCKET returns; `None` if it failed.
pub(super) fn owned_fd(result: i32) -> Option<OwnedFd> {
    // SAFETY: callers pass only results of operations that return a new descriptor. The kernel has
    // just opened it, and no other owner exists.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) })
}
