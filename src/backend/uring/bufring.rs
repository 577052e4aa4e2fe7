//! A provided-buffer ring (5.19): the buffers that the kernel may select for receives. Owns: the
//! memory of the ring, and the buffers of a pool that are in it. Invariant: while a buffer is in
//! the ring, it is checked out of the pool, and only the kernel writes to it. Must not know who
//! receives.

use crate::buf::Pool;
use crate::sys::Mapping;
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// The buffer group of most receives.
pub(super) const GROUP: u16 = 0;
/// The buffer group of first receives, which are single-shot, where the buffers of `GROUP` are
/// incremental.
pub(super) const GROUP_FIRST: u16 = 1;
/// IOU_PBUF_RING_INC (6.12): the kernel fills a buffer in several pieces.
const INCREMENTAL: u16 = 2;

#[derive(Debug)]
pub(super) struct BufRing {
    memory: Mapping,
    group: u16,
    entries: u16,
    tail: u16,
    /// Buffers in the ring that the kernel can still fill.
    usable: usize,
}

impl BufRing {
    /// Registers an empty ring of `entries` entries (a power of two).
    pub(super) fn register(
        uring: &IoUring,
        group: u16,
        entries: u16,
        incremental: bool,
    ) -> io::Result<BufRing> {
        let memory = Mapping::new(usize::from(entries) * size_of::<BufRingEntry>())?;
        // The kernel reads the physical pages that are registered here. If a fork shared them
        // copy-on-write, the next `refill` could write to a copy, which the kernel never reads.
        memory.exclude_from_fork();
        let flags = if incremental { INCREMENTAL } else { 0 };
        let start = memory.start().as_ptr() as u64;
        // SAFETY: page-aligned memory of the right size, which lives until the ring is unregistered
        // or closed (`Uring` drops this after its ring).
        unsafe { uring.submitter().register_buf_ring_with_flags(start, entries, group, flags)? };
        Ok(BufRing { memory, group, entries, tail: 0, usable: 0 })
    }

    /// Unregisters the ring. No receive may be in flight.
    pub(super) fn unregister(&self, uring: &IoUring) {
        let _ = uring.submitter().unregister_buf_ring(self.group);
    }

    pub(super) fn usable(&self) -> usize {
        self.usable
    }

    /// The kernel has filled a buffer and released it.
    pub(super) fn buffer_consumed(&mut self) {
        self.usable -= 1;
    }

    /// Provides all free buffers of the pool to the kernel, with one release store.
    pub(super) fn refill(&mut self, pool: &Pool) {
        let before = self.tail;
        while let Some(id) = pool.checkout() {
            let (start, len) = pool.room(id);
            let base: *mut BufRingEntry = self.memory.start().as_ptr().cast();
            let index = usize::from(self.tail & (self.entries - 1));
            // SAFETY: within the ring's memory, which is writable and initially zero. The kernel
            // reads an entry only when the tail is past it. There are as many entries as buffers,
            // so this one is not in use.
            let entry = unsafe { &mut *base.add(index) };
            entry.set_addr(start.as_ptr() as u64);
            entry.set_len(len);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            self.usable += 1;
        }
        if self.tail != before {
            let base: *const BufRingEntry = self.memory.start().as_ptr().cast();
            // SAFETY: the tail is in the reserved field of the first entry, aligned for u16. The
            // kernel loads it with acquire.
            unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) }
                .store(self.tail, Ordering::Release);
        }
    }
}
