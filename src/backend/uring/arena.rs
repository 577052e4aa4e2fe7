//! Memory that the kernel reads at submission and not later (IORING_FEAT_SUBMIT_STABLE, required by
//! this backend): addresses, message headers, iovecs. Owns: three fixed arrays, allocated from
//! front to back and reset when the submission queue is empty. Invariant: nothing in it moves
//! before the SQE that references it is submitted. Must not know who sends what.

use std::mem::MaybeUninit;

#[derive(Debug)]
pub(super) struct Arena {
    iovecs: Box<[MaybeUninit<libc::iovec>]>,
    iovecs_used: usize,
    headers: Box<[MaybeUninit<libc::msghdr>]>,
    headers_used: usize,
    addrs: Box<[MaybeUninit<socket2::SockAddr>]>,
    addrs_used: usize,
}

impl Arena {
    /// For a submission queue of `entries` SQEs, and at most `gather_max` payloads in one send.
    pub(super) fn new(entries: usize, gather_max: usize) -> Arena {
        Arena {
            iovecs: Box::new_uninit_slice(gather_max.max(entries * 4)),
            iovecs_used: 0,
            headers: Box::new_uninit_slice(entries),
            headers_used: 0,
            addrs: Box::new_uninit_slice(entries),
            addrs_used: 0,
        }
    }

    /// Frees all of it. No staged SQE may reference the arena.
    pub(super) fn reset(&mut self) {
        (self.iovecs_used, self.headers_used, self.addrs_used) = (0, 0, 0);
    }

    /// The longest list of iovecs that [`Arena::message`] takes now.
    pub(super) fn iovec_room(&self) -> usize {
        match self.headers_used < self.headers.len() {
            true => self.iovecs.len() - self.iovecs_used,
            false => 0,
        }
    }

    /// Stores an iovec for each part and a message header for the list. Returns the header and the
    /// number of bytes in the list.
    ///
    /// # Panics
    /// If there are more parts than [`Arena::iovec_room`].
    pub(super) fn message<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> (*const libc::msghdr, usize) {
        let room = &mut self.iovecs[self.iovecs_used..];
        let (mut count, mut bytes) = (0, 0);
        for part in parts {
            room[count].write(libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            count += 1;
            bytes += part.len();
        }
        // SAFETY: zero is a valid msghdr: no name, no control data.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = room.as_mut_ptr().cast();
        header.msg_iovlen = count as _;
        self.iovecs_used += count;
        let place = &mut self.headers[self.headers_used];
        self.headers_used += 1;
        (place.write(header), bytes)
    }

    pub(super) fn addr_room(&self) -> usize {
        self.addrs.len() - self.addrs_used
    }

    /// Stores an address. It is never dropped, which leaks nothing: a `SockAddr` owns no memory.
    pub(super) fn addr(
        &mut self,
        addr: socket2::SockAddr,
    ) -> (*const libc::sockaddr, libc::socklen_t) {
        let place = &mut self.addrs[self.addrs_used];
        self.addrs_used += 1;
        let addr = place.write(addr);
        (addr.as_ptr().cast(), addr.len() as _)
    }
}
