//! Provided buffers of the bare ring. Owns: the buffer ring, and a count of claims on each buffer:
//! one of the kernel, one for each piece of data in it. A buffer without a claim is provided again.

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

pub const GROUP: u16 = 0;
const INCREMENTAL: u16 = 2;

/// Received bytes that are queued to be sent, or in flight.
#[derive(Clone, Copy)]
pub struct Piece {
    pub start: *const u8,
    pub len: usize,
    pub buffer: u16,
}

pub struct Buffers {
    memory: Vec<u8>,
    /// The buffer ring, page-aligned, shared with the kernel.
    ring: *mut BufRingEntry,
    count: u16,
    size: usize,
    tail: u16,
    /// The buffer at each position of the ring. A bundle continues with the next position.
    buffer_at: Vec<u16>,
    /// The position of each buffer.
    position: Vec<u16>,
    filled: Vec<usize>,
    claims: Vec<u32>,
}

impl Buffers {
    pub fn new(count: u16, size: usize) -> Buffers {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a valid layout");
        // SAFETY: the layout has a size. The memory is kept until the process ends.
        let ring = unsafe { std::alloc::alloc_zeroed(layout) }.cast();
        let entries = usize::from(count);
        Buffers {
            memory: vec![0; entries * size],
            ring,
            count,
            size,
            tail: 0,
            buffer_at: vec![0; entries],
            position: vec![0; entries],
            filled: vec![0; entries],
            claims: vec![0; entries],
        }
    }

    /// Registers the ring and provides all buffers.
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
        let position = self.tail & (self.count - 1);
        // SAFETY: within the ring; the kernel reads the entry only after the tail has passed it.
        let entry = unsafe { &mut *self.ring.add(usize::from(position)) };
        entry.set_addr(self.memory[usize::from(buffer) * self.size..].as_ptr() as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(buffer);
        (self.buffer_at[usize::from(position)], self.position[usize::from(buffer)]) =
            (buffer, position);
        (self.filled[usize::from(buffer)], self.claims[usize::from(buffer)]) = (0, 1);
        self.tail = self.tail.wrapping_add(1);
    }

    pub fn publish(&self) {
        // SAFETY: the tail is in the first entry of the ring, aligned for u16.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.ring).cast_mut()) }
            .store(self.tail, Ordering::Release);
    }

    /// Adds the bytes of a completion to `pieces`, one piece per buffer.
    pub fn add_pieces(&mut self, first: u16, mut len: usize, more: bool, pieces: &mut Vec<Piece>) {
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
            buffer = self.buffer_at[usize::from((self.position[index] + 1) & (self.count - 1))];
        }
    }

    pub fn end_claim(&mut self, buffer: u16) {
        self.claims[usize::from(buffer)] -= 1;
        if self.claims[usize::from(buffer)] == 0 {
            self.provide(buffer);
        }
    }
}
