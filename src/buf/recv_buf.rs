//! A caller's buffer on its way through `recv_into`. Owns: the buffer and how much is still wanted.
//! Invariant: bytes count as initialised only once they were written.

use bytes::{BufMut, BytesMut};
use std::mem::MaybeUninit;

#[derive(Debug, Default)]
pub(crate) struct RecvBuf {
    buffer: BytesMut,
    missing: usize,
}

impl RecvBuf {
    /// Begins to receive `len` bytes behind what `buffer` holds.
    pub(crate) fn begin(&mut self, mut buffer: BytesMut, len: usize) {
        buffer.reserve(len);
        *self = RecvBuf { buffer, missing: len };
    }

    pub(crate) fn is_done(&self) -> bool {
        self.missing == 0
    }

    /// Where the next bytes go: at most as many as are missing.
    pub(crate) fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        let spare = self.buffer.spare_capacity_mut();
        let len = spare.len().min(self.missing);
        &mut spare[..len]
    }

    /// The first `count` bytes of the room were written.
    ///
    /// # Safety
    /// That many bytes at the start of what [`RecvBuf::room`] returned last must have been written.
    /// There may be no more of them than its length.
    pub(crate) unsafe fn advance(&mut self, count: usize) {
        debug_assert!(count <= self.missing, "no more than there was room for");
        // SAFETY: as promised by the caller.
        unsafe { self.buffer.set_len(self.buffer.len() + count) };
        self.missing -= count;
    }

    /// Takes what fits from `bytes`; returns how many.
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.missing);
        self.buffer.put_slice(&bytes[..taken]);
        self.missing -= taken;
        taken
    }

    pub(crate) fn take_buffer(&mut self) -> BytesMut {
        self.missing = 0;
        std::mem::take(&mut self.buffer)
    }
}

/// Emptied boxes waiting for the next receive into a buffer.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "the boxes themselves are what is handed on")]
pub(crate) struct RecvBufPool(Vec<Box<RecvBuf>>);

/// Boxes kept, engine-wide.
const KEPT_MAX: usize = 1024;

impl RecvBufPool {
    pub(crate) fn begin(&mut self, buffer: BytesMut, len: usize) -> Box<RecvBuf> {
        let mut recv_buf = self.0.pop().unwrap_or_default();
        recv_buf.begin(buffer, len);
        recv_buf
    }

    /// Takes the caller's buffer out, and keeps the box.
    pub(crate) fn end(&mut self, mut recv_buf: Box<RecvBuf>) -> BytesMut {
        let buffer = recv_buf.take_buffer();
        if self.0.len() < KEPT_MAX {
            self.0.push(recv_buf);
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_by_copy_and_by_room() {
        let mut pool = RecvBufPool::default();
        let mut recv_buf = pool.begin(BytesMut::from(&b"head:"[..]), 6);
        assert_eq!(recv_buf.copy_from(b"ab"), 2);
        let room = recv_buf.room();
        assert_eq!(room.len(), 4);
        for (place, byte) in room.iter_mut().zip(b"cde") {
            place.write(*byte);
        }
        // SAFETY: three bytes at the start of the room were just written.
        unsafe { recv_buf.advance(3) };
        assert!(!recv_buf.is_done());
        assert_eq!(recv_buf.copy_from(b"fgh"), 1);
        assert!(recv_buf.is_done());
        assert_eq!(&pool.end(recv_buf)[..], b"head:abcdef");
    }
}
