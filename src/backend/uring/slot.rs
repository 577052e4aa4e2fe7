//! What the backend knows of a connection or listener. Owns: the data, and the questions that can be answered from it alone.

use super::token::Kind;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const NO_BUFFER: u16 = u16::MAX;

/// Bits of [`Slot::marks`].
pub(super) mod mark {
    /// The last receive filled its buffer: try the next one without a poll before it.
    pub(in crate::backend::uring) const HOT: u8 = 1;
    /// Nothing was received yet.
    pub(in crate::backend::uring) const FRESH: u8 = 1 << 1;
    /// Nothing was sent yet on a socket that was made here: its first send cannot wait for its peer.
    pub(in crate::backend::uring) const UNUSED: u8 = 1 << 2;
    /// The first receive waits for the end of the first send.
    pub(in crate::backend::uring) const HELD: u8 = 1 << 3;
}

/// One connection or listener.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) fd: Option<OwnedFd>,
    pub(super) generation: u32,
    /// What is in flight: a receive, a send, and one of all others (a connect, an accept, a close).
    pub(super) recv: Kind,
    pub(super) send: Kind,
    pub(super) open: Kind,
    /// The operations (bits by [`Op`](crate::backend::Op)) that were advised to end: no next step for them.
    pub(super) stop: u8,
    /// Bits of [`mark`].
    marks: u8,
    /// The buffer of a receive in flight that the kernel did not pick.
    pub(super) buffer: u16,
}

impl Slot {
    pub(super) fn new(fd: Option<OwnedFd>, generation: u32) -> Slot {
        Slot {
            fd,
            generation,
            recv: Kind::Idle,
            send: Kind::Idle,
            open: Kind::Idle,
            stop: 0,
            marks: mark::FRESH,
            buffer: NO_BUFFER,
        }
    }

    pub(super) fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    pub(super) fn set(&mut self, mark: u8, on: bool) {
        self.marks = if on { self.marks | mark } else { self.marks & !mark };
    }

    /// Takes a mark away; whether it was there.
    pub(super) fn take(&mut self, mark: u8) -> bool {
        let had = self.has(mark);
        self.set(mark, false);
        had
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Takes the buffer that a receive was given, if the kernel did not pick one.
    pub(super) fn take_buffer(&mut self) -> Option<u16> {
        let buffer = std::mem::replace(&mut self.buffer, NO_BUFFER);
        (buffer != NO_BUFFER).then_some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_slots_share_a_cache_line() {
        assert_eq!(size_of::<Slot>(), 16);
    }
}
