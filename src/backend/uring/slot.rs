//! The state of one connection or listener in this backend. Owns: its descriptor, the SQE kinds in
//! flight, and the batch of a send. Invariant: at most one SQE is in flight per direction (receive,
//! send, hang-up, open). Must not know the ring.

use super::token::Kind;
use crate::backend::{OpKind, SendBatch};
use crate::buf::InFlight;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const NO_BUFFER: u16 = u16::MAX;

/// Bits of [`Slot::flags`].
pub(super) mod flag {
    /// The last receive filled its buffer: the next one starts without a poll.
    pub(in crate::backend::uring) const BUFFER_FILLED: u8 = 1;
    /// No receive was started yet.
    pub(in crate::backend::uring) const NO_RECV_STARTED: u8 = 1 << 1;
    /// Nothing was sent yet on a socket that this side connected: its send buffer is empty, so the
    /// first send completes without waiting for the peer.
    pub(in crate::backend::uring) const NOTHING_SENT: u8 = 1 << 2;
    /// The first receive is delayed until the first send completes.
    pub(in crate::backend::uring) const RECV_DELAYED: u8 = 1 << 3;
    /// The batch came with the connect and waits for it. No SQE reads it.
    pub(in crate::backend::uring) const EARLY_BATCH: u8 = 1 << 4;
    /// A listener: it accepts and does not connect.
    pub(in crate::backend::uring) const LISTENER: u8 = 1 << 5;
}

/// One connection or listener.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) fd: Option<OwnedFd>,
    /// The generation of the key that owns the slot; 0 if the slot is free.
    pub(super) generation: u32,
    /// The receive SQE in flight.
    pub(super) recv: Kind,
    /// The send SQE in flight.
    pub(super) send: Kind,
    /// The hang-up poll in flight.
    pub(super) hangup: Kind,
    /// The SQE of a connect, an accept or a close in flight.
    pub(super) open: Kind,
    /// The operations (one bit per [`OpKind`]) with a cancel request: they stage no further SQE.
    canceled: u8,
    /// Bits of [`flag`].
    flags: u8,
    /// The buffer of a receive in flight, where the backend chose it and not the kernel.
    pub(super) buffer: u16,
    /// The payloads that a send in flight reads.
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
            canceled: 0,
            flags: flag::NO_RECV_STARTED,
            buffer: NO_BUFFER,
            batch: None,
        }
    }

    /// The SQE in flight for an operation, or `Idle`.
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

    /// Notes a cancel request: the operation ends instead of staging another SQE.
    pub(super) fn request_cancel(&mut self, op: OpKind) {
        self.canceled |= 1 << op as u8;
    }

    pub(super) fn cancel_requested(&self, op: OpKind) -> bool {
        self.canceled & 1 << op as u8 != 0
    }

    /// Removes the cancel request of an earlier operation.
    pub(super) fn clear_cancel(&mut self, op: OpKind) {
        self.canceled &= !(1 << op as u8);
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    /// Clears a flag. True if it was set.
    pub(super) fn clear(&mut self, flag: u8) -> bool {
        let had = self.has(flag);
        self.set(flag, false);
        had
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Takes the buffer of a receive, where the backend chose it.
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
