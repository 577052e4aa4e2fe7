//! A provided-buffer ring (5.19): the buffers that the kernel may pick for receives. Owns: the
//! ring's memory, and the pool's buffers that are in it. Invariant: a buffer is in the ring exactly
//! while the backend holds it.
//!
//! # Two groups
//!
//! A single-shot receive may be finished by a kernel worker (after 128 wake-ups without data, which
//! a peer can bring about with urgent data). A worker takes a buffer out of the ring as a whole
//! when it picks it, even where buffers are consumed piece by piece; where the next piece begins
//! would then be known to nobody. So single-shot receives never pick from a group of piecewise
//! buffers: beside such a group they have one of their own, of whole buffers.

use crate::buf::{Lease, Pool};
use crate::error::Violation;
use crate::sys::Mapping;
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// The group of all receives, but for those that have their own.
pub(super) const MAIN: u16 = 0;
/// The group of single-shot receives, where that of the others is piecewise.
pub(super) const SINGLE_SHOT: u16 = 1;
/// Number, size in bytes and low watermark of the buffers of [`SINGLE_SHOT`].
pub(super) const SINGLE_SHOT_BUFFERS: (u16, u32, u32) = (64, 4096, 8);
/// IOU_PBUF_RING_INC (6.12): buffers are consumed piece by piece.
const INCREMENTAL: u16 = 2;

#[derive(Debug)]
pub(super) struct BufRing {
    memory: Mapping,
    pool: Pool,
    group: u16,
    piecewise: bool,
    entries: u16,
    tail: u16,
    /// Buffers in the ring that the kernel can still fill.
    usable: usize,
}

impl BufRing {
    /// Registers an empty ring of `entries` (a power of two), for as many buffers of the pool.
    pub(super) fn register(
        uring: &IoUring,
        group: u16,
        pool: &Pool,
        entries: u16,
        piecewise: bool,
    ) -> io::Result<BufRing> {
        let memory = Mapping::new(usize::from(entries) * size_of::<BufRingEntry>())?;
        // The kernel reads the physical pages that are registered here. If a fork shared them
        // copy-on-write, the next `refill` could go to a copy, which the kernel never reads.
        memory.keep_from_children();
        let flags = if piecewise { INCREMENTAL } else { 0 };
        let start = memory.start().as_ptr() as u64;
        // SAFETY: page-aligned memory of the right size, which lives until the ring is unregistered or gone (`Uring` drops
        // this after its ring).
        unsafe { uring.submitter().register_buf_ring_with_flags(start, entries, group, flags)? };
        Ok(BufRing { memory, pool: pool.clone(), group, piecewise, entries, tail: 0, usable: 0 })
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn group(&self) -> u16 {
        self.group
    }

    pub(super) fn usable(&self) -> usize {
        self.usable
    }

    /// The kernel put `len` bytes into a buffer that it picked, and goes on filling it if `more`.
    #[inline]
    pub(super) fn deliver(&mut self, id: u16, len: u32, more: bool) -> Result<Lease, Violation> {
        if more && !self.piecewise {
            return Err(Violation("a whole buffer was filled in part and goes on"));
        }
        let lease = self.pool.deliver(id, len, more)?;
        self.usable -= usize::from(!more);
        Ok(lease)
    }

    /// Gives all free buffers of the pool to the kernel, with one release store.
    pub(super) fn refill(&mut self) {
        let before = self.tail;
        while let Some(id) = self.pool.checkout() {
            let (start, len) = self.pool.room(id);
            let base: *mut BufRingEntry = self.memory.start().as_ptr().cast();
            let index = usize::from(self.tail & (self.entries - 1));
            // SAFETY: within the ring's memory, which is writable and zeroed at first; the kernel reads an entry only once the
            // tail is past it. There are as many entries as buffers, so this one is not in use.
            let entry = unsafe { &mut *base.add(index) };
            entry.set_addr(start.as_ptr() as u64);
            entry.set_len(len);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            self.usable += 1;
        }
        if self.tail != before {
            let base: *const BufRingEntry = self.memory.start().as_ptr().cast();
            // SAFETY: the tail lies in the first entry's reserved field, aligned for u16; the kernel loads it with acquire.
            unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) }.store(self.tail, Ordering::Release);
        }
    }

    /// Takes the ring from the kernel. If it refuses, it keeps using the memory until its io_uring
    /// is gone, which is not quite when that is dropped: then the memory is leaked.
    pub(super) fn unregister(self, uring: &IoUring) {
        if uring.submitter().unregister_buf_ring(self.group).is_err() {
            self.leak();
        }
    }

    /// Keeps the memory of the ring and of its buffers for ever: for when the kernel may still use
    /// it.
    pub(super) fn leak(self) {
        std::mem::forget(self);
    }
}
