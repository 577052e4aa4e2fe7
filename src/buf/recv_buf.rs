//! The buffer of a `recv_into`. Owns: the buffer of the caller, and the number of bytes that are
//! still missing. Invariant: the length of the buffer covers only bytes that were written. Must not
//! know who writes them.

use bytes::{BufMut, BytesMut};
use std::mem::MaybeUninit;

/// A buffer of the caller that is being filled.
#[derive(Debug, Default)]
pub(crate) struct RecvBuf {
    buffer: BytesMut,
    missing: usize,
}

impl RecvBuf {
    /// Starts to receive `len` bytes behind the contents of `buffer`.
    pub(crate) fn begin(&mut self, mut buffer: BytesMut, len: usize) {
        buffer.reserve(len);
        *self = RecvBuf { buffer, missing: len };
    }

    pub(crate) fn is_done(&self) -> bool {
        self.missing == 0
    }

    /// The memory for the next bytes. Its length is at most the number of missing bytes.
    pub(crate) fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        let spare = self.buffer.spare_capacity_mut();
        let len = spare.len().min(self.missing);
        &mut spare[..len]
    }

    /// Adds the first `count` bytes of the room to the buffer.
    ///
    /// # Safety
    /// The first `count` bytes of the slice that [`RecvBuf::room`] returned last must have been
    /// written, and `count` must not exceed its length.
    pub(crate) unsafe fn advance(&mut self, count: usize) {
        debug_assert!(count <= self.missing, "at most the missing bytes were written");
        // SAFETY: the caller has written these bytes, which are within the capacity.
        unsafe { self.buffer.set_len(self.buffer.len() + count) };
        self.missing -= count;
    }

    /// Copies as many of `bytes` as are missing. Returns their number.
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

/// Boxes that are kept for the next `recv_into`.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "the boxes are reused, not only their contents")]
pub(crate) struct RecvBufPool(Vec<Box<RecvBuf>>);

/// The maximum number of boxes kept by an engine.
const KEPT_MAX: usize = 1024;

impl RecvBufPool {
    pub(crate) fn begin(&mut self, buffer: BytesMut, len: usize) -> Box<RecvBuf> {
        let mut recv_buf = self.0.pop().unwrap_or_default();
        recv_buf.begin(buffer, len);
        recv_buf
    }

    /// Returns the buffer of the caller, and keeps the box.
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
    fn a_buffer_is_filled_by_copies_and_by_writes_to_its_room() {
        let mut pool = RecvBufPool::default();
        let mut recv_buf = pool.begin(BytesMut::from(&b"head:"[..]), 6);
        assert_eq!(recv_buf.copy_from(b"ab"), 2);
        let room = recv_buf.room();
        assert_eq!(room.len(), 4);
        for (place, byte) in room.iter_mut().zip(b"cde") {
            place.write(*byte);
        }
        // SAFETY: the first three bytes of the room were written above.
        unsafe { recv_buf.advance(3) };
        assert!(!recv_buf.is_done());
        assert_eq!(recv_buf.copy_from(b"fgh"), 1);
        assert!(recv_buf.is_done());
        assert_eq!(&pool.end(recv_buf)[..], b"head:abcdef");
    }
}
