//! Provided buffers: the ring that the kernel picks them from, and who has a claim on them.

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

pub const GROUP: u16 = 0;
const INCREMENTAL: u16 = 2;

/// Received bytes that wait to be sent, or are being sent.
#[derive(Clone, Copy)]
pub struct Piece {
    pub start: *const u8,
    pub len: usize,
    pub buffer: u16,
}

pub struct Buffers {
    memory: Vec<u8>,
    /// The entries, page-aligned, shared with the kernel.
    ring: *mut BufRingEntry,
    count: u16,
    size: usize,
    tail: u16,
    /// Which buffer lies at which place of the ring, and where each lies: bundles go on with the
    /// next place.
    order: Vec<u16>,
    place: Vec<u16>,
    filled: Vec<usize>,
    claims: Vec<u32>,
}

impl Buffers {
    pub fn new(count: u16, size: usize) -> Buffers {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a valid layout");
        // SAFETY: not of zero size. Kept until the process ends.
        let ring = unsafe { std::alloc::alloc_zeroed(layout) }.cast();
        let entries = usize::from(count);
        Buffers {
            memory: vec![0; entries * size],
            ring,
            count,
            size,
            tail: 0,
            order: vec![0; entries],
            place: vec![0; entries],
            filled: vec![0; entries],
            claims: vec![0; entries],
        }
    }

    /// Gives all of them to the kernel.
    pub fn register(&mut self, uring: &IoUring, incremental: bool) -> io::Result<()> {
        let flags = if incremental { INCREMENTAL } else { 0 };
        // SAFETY: the ring of buffers is kept until the process ends.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                self.ring as u64,
                self.count,
                GROUP,
                flags,
            )?
        };
        (0..self.count).for_each(|buffer| self.provide(buffer));
        self.publish();
        Ok(())
    }

    fn provide(&mut self, buffer: u16) {
        let place = self.tail & (self.count - 1);
        // SAFETY: within the ring; the kernel reads the entry only once the tail is past it.
        let entry = unsafe { &mut *self.ring.add(usize::from(place)) };
        entry.set_addr(self.memory[usize::from(buffer) * self.size..].as_ptr() as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(buffer);
        (self.order[usize::from(place)], self.place[usize::from(buffer)]) = (buffer, place);
        (self.filled[usize::from(buffer)], self.claims[usize::from(buffer)]) = (0, 1);
        self.tail = self.tail.wrapping_add(1);
    }

    pub fn publish(&self) {
        // SAFETY: the tail lies in the first entry, aligned for u16.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.ring).cast_mut()) }
            .store(self.tail, Ordering::Release);
    }

    /// The bytes that a completion brought, in one piece per buffer.
    pub fn take(&mut self, first: u16, mut len: usize, more: bool, pieces: &mut Vec<Piece>) {
        let mut buffer = first;
        loop {
            let index = usize::from(buffer);
            let part = len.min(self.size - self.filled[index]);
            let start = self.memory[index * self.size + self.filled[index]..].as_ptr();
            pieces.push(Piece { start, len: part, buffer });
            self.filled[index] += part;
            self.claims[index] += 1;
            len -= part;
            if len > 0 || !more {
                self.end_claim(buffer);
            }
            if len == 0 {
                return;
            }
            buffer = self.order[usize::from((self.place[index] + 1) & (self.count - 1))];
        }
    }

    pub fn end_claim(&mut self, buffer: u16) {
        self.claims[usize::from(buffer)] -= 1;
        if self.claims[usize::from(buffer)] == 0 {
            self.provide(buffer);
        }
    }
}
