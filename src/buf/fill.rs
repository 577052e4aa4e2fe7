//! A caller's buffer on its way through `recv_into`. Owns: the buffer and how much is still wanted. Invariant: bytes count as
//! initialised only once a backend vouches for them with a [`Written`].

use bytes::{BufMut, BytesMut};

#[derive(Debug)]
pub(crate) struct Fill {
    buffer: BytesMut,
    missing: usize,
}

/// A number of bytes that an operation wrote at the start of the window it was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written(usize);

impl Written {
    /// # Safety
    /// The operation must have written that many bytes at the start of [`Fill::window`], as it was when the operation was given
    /// it.
    pub(crate) unsafe fn new(bytes: usize) -> Written {
        Written(bytes)
    }

    pub(crate) fn bytes(self) -> usize {
        self.0
    }
}

impl Fill {
    pub(crate) fn new(mut buffer: BytesMut, len: usize) -> Fill {
        buffer.reserve(len);
        Fill { buffer, missing: len }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.missing == 0
    }

    /// Where the next bytes go. Stays put until [`Fill::advance`], [`Fill::copy_from`] or [`Fill::into_buffer`].
    pub(crate) fn window(&mut self) -> (*mut u8, usize) {
        let spare = self.buffer.spare_capacity_mut();
        (spare.as_mut_ptr().cast(), spare.len().min(self.missing))
    }

    pub(crate) fn advance(&mut self, written: Written) {
        assert!(written.0 <= self.missing, "a receive wrote no more than it was given room for");
        // SAFETY: `new` reserved `missing` bytes behind the length, and `Written` vouches that these were written.
        unsafe { self.buffer.set_len(self.buffer.len() + written.0) };
        self.missing -= written.0;
    }

    /// Takes what fits from `bytes`; returns how many.
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.missing);
        self.buffer.put_slice(&bytes[..taken]);
        self.missing -= taken;
        taken
    }

    pub(crate) fn into_buffer(self) -> BytesMut {
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_by_copy_and_by_window() {
        let mut fill = Fill::new(BytesMut::from(&b"head:"[..]), 6);
        assert_eq!(fill.copy_from(b"ab"), 2);
        let (start, len) = fill.window();
        assert_eq!(len, 4);
        // SAFETY: the window is `len` writable bytes.
        unsafe { std::ptr::copy_nonoverlapping(b"cdef".as_ptr(), start, 4) };
        // SAFETY: three bytes at the start of the window were just written.
        fill.advance(unsafe { Written::new(3) });
        assert!(!fill.is_done());
        assert_eq!(fill.copy_from(b"fgh"), 1);
        assert!(fill.is_done());
        assert_eq!(&fill.into_buffer()[..], b"head:abcdef");
    }
}
