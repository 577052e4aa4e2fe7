//! What the backend knows of a connection or listener. Owns: the data, and the questions that can
//! be answered from it alone.

use super::token::Kind;
use crate::backend::{OpKind, SendBatch};
use crate::buf::InFlight;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const NO_BUFFER: u16 = u16::MAX;

/// Bits of [`Slot::marks`].
pub(super) mod mark {
    /// The last receive filled its buffer: try the next one without a poll before it.
    pub(in crate::backend::uring) const HOT: u8 = 1;
    /// Nothing was received yet.
    pub(in crate::backend::uring) const FRESH: u8 = 1 << 1;
    /// Nothing was sent yet on a socket that was made here: its first send cannot wait for its
    /// peer.
    pub(in crate::backend::uring) const UNUSED: u8 = 1 << 2;
    /// The first receive waits for the end of the first send.
    pub(in crate::backend::uring) const HELD: u8 = 1 << 3;
    /// The batch is one that waits for the end of the connect: the kernel does not know of it.
    pub(in crate::backend::uring) const EARLY: u8 = 1 << 4;
    /// A listener: it accepts, and does not connect.
    pub(in crate::backend::uring) const LISTENS: u8 = 1 << 5;
}

/// One connection or listener.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) fd: Option<OwnedFd>,
    /// Of the occupant; 0 is no key's.
    pub(super) generation: u32,
    /// What is in flight: a receive, a send, a watch for a hang-up, and one of connect, accept and
    /// close.
    pub(super) recv: Kind,
    pub(super) send: Kind,
    pub(super) hangup: Kind,
    pub(super) open: Kind,
    /// The operations (bits by [`OpKind`]) that were advised to end: no next step for them.
    stop: u8,
    /// Bits of [`mark`].
    marks: u8,
    /// The buffer of a receive in flight that the kernel did not pick.
    pub(super) buffer: u16,
    /// What a send in flight reads.
    pub(super) batch: Option<InFlight<SendBatch>>,
}

impl Slot {
    pub(super) fn new(fd: Option<OwnedFd>, generation: u32) -> Slot {
        Slot {
            fd,
            generation,
            recv: Kind::Idle,
            send: Kind::Idle,
            hangup: Kind::Idle,
            open: Kind::Idle,
            stop: 0,
            marks: mark::FRESH,
            buffer: NO_BUFFER,
            batch: None,
        }
    }

    /// What is in flight for an operation.
    pub(super) fn in_flight(&self, op: OpKind) -> Kind {
        match op {
            OpKind::Connect | OpKind::Accept | OpKind::Close => self.open,
            OpKind::Recv => self.recv,
            OpKind::Send => self.send,
            OpKind::Hangup => self.hangup,
        }
    }

    pub(super) fn in_flight_mut(&mut self, op: OpKind) -> &mut Kind {
        match op {
            OpKind::Connect | OpKind::Accept | OpKind::Close => &mut self.open,
            OpKind::Recv => &mut self.recv,
            OpKind::Send => &mut self.send,
            OpKind::Hangup => &mut self.hangup,
        }
    }

    /// Advises an operation to end: its next step ends it.
    pub(super) fn stop(&mut self, op: OpKind) {
        self.stop |= 1 << op as u8;
    }

    pub(super) fn is_stopped(&self, op: OpKind) -> bool {
        self.stop & 1 << op as u8 != 0
    }

    /// An operation is started anew.
    pub(super) fn unstop(&mut self, op: OpKind) {
        self.stop &= !(1 << op as u8);
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
    fn a_slot_is_small() {
        assert_eq!(size_of::<Slot>(), 24);
    }
}
