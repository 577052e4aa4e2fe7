//! Memory that the kernel reads while it takes submissions, and not after
//! (IORING_FEAT_SUBMIT_STABLE, which this backend insists on): addresses, message headers, gather
//! lists. Owns: fixed arrays, handed out front to back, free again when the submission queue is
//! empty. Invariant: nothing in it moves while a submission that names it is not yet taken.

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
    /// For a submission queue of so many entries, and so many payloads gathered in one send.
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

    /// Nothing names anything in here any more.
    pub(super) fn reset(&mut self) {
        (self.iovecs_used, self.headers_used, self.addrs_used) = (0, 0, 0);
    }

    /// How long the next gather list can be.
    pub(super) fn iovec_room(&self) -> usize {
        match self.headers_used < self.headers.len() {
            true => self.iovecs.len() - self.iovecs_used,
            false => 0,
        }
    }

    /// Keeps a gather list with a header over it. Returns it with the number of bytes in the list.
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

    /// Keeps an address. (Nothing is lost by never dropping it: it owns no memory.)
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
