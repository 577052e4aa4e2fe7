//! Submission queue entries that name no memory. Owns: [`Plain`], which is made here and nowhere
//! else. Invariant: the kernel reads and writes nothing for such an entry, so that safe code may
//! stage it.

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

pub(super) struct Plain(Entry);

impl Plain {
    /// Completes once any of these events of poll(2) is there.
    pub(super) fn poll(fd: types::Fd, events: libc::c_short) -> Plain {
        Plain(opcode::PollAdd::new(fd, events as u32).build())
    }

    pub(super) fn poll_of(fd: BorrowedFd<'_>, events: libc::c_short) -> Plain {
        Plain::poll(types::Fd(fd.as_raw_fd()), events)
    }

    /// No address is asked for: whoever wants to know calls getpeername(2).
    pub(super) fn accept(fd: types::Fd, multishot: bool) -> Plain {
        let (nowhere, flags) = (std::ptr::null_mut(), libc::SOCK_CLOEXEC);
        Plain(match multishot {
            true => opcode::AcceptMulti::new(fd).flags(flags).build(),
            false => opcode::Accept::new(fd, nowhere, nowhere.cast()).flags(flags).build(),
        })
    }

    /// A TCP or unix stream socket.
    pub(super) fn socket(domain: libc::c_int) -> Plain {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        Plain(opcode::Socket::new(domain, kind, libc::IPPROTO_TCP).build())
    }

    pub(super) fn close(fd: OwnedFd) -> Plain {
        Plain(opcode::Close::new(types::Fd(fd.into_raw_fd())).build())
    }

    /// Ends the entry with this user_data. By descriptor it could hit the next user of the number.
    pub(super) fn cancel(target: u64) -> Plain {
        Plain(opcode::AsyncCancel::new(target).build())
    }

    pub(super) fn with(self, user_data: u64) -> Entry {
        self.0.user_data(user_data)
    }
}

/// The descriptor that a completion of an accept or a socket brings, if it succeeded.
pub(super) fn descriptor(result: i32) -> Option<OwnedFd> {
    // SAFETY: only called with the result of an entry that makes a descriptor: the kernel just made
    // it, and nobody else has it.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) })
}
