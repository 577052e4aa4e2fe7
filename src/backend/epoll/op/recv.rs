//! Receiving into the pool, and recv(2), which `recv_into.rs` uses too. Owns: the pool buffer that
//! is being filled. Invariant: that buffer is checked out, and no lease covers the part of it that
//! recv(2) may still write. Must not know: which connections wait for a buffer.
#![allow(unsafe_code)]

use super::super::{Completed, EpollBackend, Outcome, bit};
use crate::backend::Started;
use crate::error::{Errno, Violation};
use crate::id::Key;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

/// A buffer with less room than this is not filled further: a small rest would cut the next read
/// short.
const ROOM_BYTES_MIN: u32 = 2048;

impl EpollBackend {
    #[inline(always)]
    pub(in super::super) fn start_recv(&mut self, key: Key) -> Started {
        self.arm(key, bit::RECV, bit::RECV | bit::RECV_INTO);
        Started::InFlight
    }

    /// One read into the pool. `None`: the socket is empty.
    #[inline(always)]
    pub(in super::super) fn recv(&mut self, key: Key) -> Option<Completed<OwnedFd>> {
        let Some(buffer) = self.open_buffer.take().or_else(|| self.pool.checkout()) else {
            return self.recv_ended(key, Err(Errno(libc::ENOBUFS)));
        };
        self.pool.rewind(buffer);
        let (start, size) = self.pool.room(buffer);
        let mut room = NonNull::slice_from_raw_parts(start.cast(), size as usize);
        // SAFETY: `Pool::room` of a checked-out buffer is mapped memory that no lease covers before
        // `deliver`, and the only other reference to the buffer, `self.open_buffer`, was taken
        // above. `self.pool` keeps the mapping.
        let result = self.recv_at(key, unsafe { room.as_mut() });
        let Ok(len @ 1..) = result else {
            self.keep_buffer_open(buffer);
            return self.recv_ended(key, result.map(drop));
        };
        self.add_work(key);
        let more = size - len as u32 >= ROOM_BYTES_MIN.min(self.pool.size());
        if more {
            self.open_buffer = Some(buffer);
        }
        match self.pool.deliver(buffer, len as u32, more) {
            Ok(lease) => Some(Completed { key, more: true, outcome: Outcome::Received(lease) }),
            Err(violation) => {
                self.fail(violation);
                None
            }
        }
    }

    #[inline(never)]
    fn recv_ended(&mut self, key: Key, result: Result<(), Errno>) -> Option<Completed<OwnedFd>> {
        if result == Err(Errno(libc::EAGAIN)) || self.failed.is_some() {
            return None;
        }
        self.slot(key).state &= !bit::RECV;
        Some(Completed::last(key, Outcome::RecvEnded(result)))
    }

    fn keep_buffer_open(&mut self, buffer: u16) {
        match self.pool.room(buffer).1 == self.pool.size() {
            true => self.pool.put_back(buffer),
            false => self.open_buffer = Some(buffer),
        }
    }

    /// Calls recv(2) and updates readiness. `Ok(n)`: n bytes at the start of the room were written,
    /// and n is at most its length.
    #[inline(always)]
    pub(super) fn recv_at(
        &mut self,
        key: Key,
        room: &mut [MaybeUninit<u8>],
    ) -> Result<usize, Errno> {
        let fd = self.slot(key).raw_fd();
        let (start, len) = (room.as_mut_ptr(), room.len());
        // SAFETY: `room` is an exclusive borrow of `len` bytes that outlives the call.
        let result = self.retry_interrupted(|| unsafe { libc::recv(fd, start.cast(), len, 0) });
        let slot = &mut self.slots[key.slot()];
        match result {
            Err(Errno(libc::EAGAIN)) => slot.state &= !(bit::READABLE | bit::HUNG_UP),
            // A short read means that the socket is empty: the next data makes an edge (epoll(7)).
            Ok(taken) if taken < len && slot.state & bit::HUNG_UP == 0 => {
                slot.state &= !bit::READABLE;
            }
            Ok(taken) if taken > len => {
                self.fail(Violation("recv(2) returned more than the length of its buffer"));
                return Err(Errno(libc::EOVERFLOW));
            }
            _ => {}
        }
        result
    }

    pub(super) fn cancel_recv(&mut self, key: Key) {
        if self.disarm(key, bit::RECV) {
            self.complete(key, Outcome::RecvEnded(Err(Errno(libc::ECANCELED))));
        }
    }
}
