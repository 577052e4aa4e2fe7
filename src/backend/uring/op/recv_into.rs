//! Receiving into a caller's buffer: RECV; in tier `polled` POLL_ADD first. Owns: its entries, what
//! their completions mean, and the buffers meanwhile. Invariant: a buffer that the kernel writes to
//! is in [`RecvBufs`] until its completion.

use super::{CANCELED, poll_read};
use crate::backend::uring::Uring;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, OpResult, Operation, Outcome, Started};
use crate::buf::{InFlight, RecvBuf};
use crate::error::Violation;
use crate::id::Key;
use io_uring::opcode;
use std::os::fd::OwnedFd;

/// A buffer on its way.
#[derive(Debug)]
enum Held {
    /// The kernel does not know of it.
    Waiting(Box<RecvBuf>),
    /// The kernel writes to its room, of so many bytes.
    InFlight(InFlight<Box<RecvBuf>>, u32),
}

/// The buffers of receives that have not ended, by slot: as long as the highest slot that ever
/// received into one.
#[derive(Debug, Default)]
pub(in crate::backend::uring) struct RecvBufs(Vec<Option<Held>>);

impl RecvBufs {
    fn put(&mut self, key: Key, held: Held) {
        let index = key.slot();
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        assert!(self.0[index].is_none(), "one receive at a time");
        self.0[index] = Some(held);
    }

    fn take(&mut self, key: Key) -> Option<Held> {
        self.0.get_mut(key.slot())?.take()
    }
}

impl Uring {
    pub(in crate::backend::uring) fn start_recv_into(
        &mut self,
        key: Key,
        buf: Box<RecvBuf>,
    ) -> Started {
        if self.ring.make_room().is_err() {
            return Started::NoRoom(Operation::RecvInto(buf));
        }
        self.slot(key).unstop(OpKind::Recv);
        self.recv_bufs.put(key, Held::Waiting(buf));
        self.push_recv_into(
            key,
            if self.style.polled { Kind::RecvIntoPoll } else { Kind::RecvInto },
        );
        Started::InFlight
    }

    /// Room must have been made, and the buffer be there.
    pub(super) fn push_recv_into(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        assert_eq!(self.slot(key).recv, Kind::Idle, "one receive at a time");
        if kind == Kind::RecvIntoPoll {
            self.ring.push_plain(poll_read(fd), pack(kind, key));
        } else {
            let Some(Held::Waiting(mut buf)) = self.recv_bufs.take(key) else { return };
            let room = buf.room();
            let (start, len) = (room.as_mut_ptr(), u32::try_from(room.len()).unwrap_or(u32::MAX));
            self.recv_bufs.put(key, Held::InFlight(InFlight::new(buf), len));
            let flags = if self.style.polled { libc::MSG_DONTWAIT } else { 0 };
            let entry = opcode::Recv::new(fd, start.cast(), len).flags(flags).build();
            // SAFETY: the room is in a buffer that is `InFlight` until the completion.
            unsafe { self.ring.push(entry.user_data(pack(kind, key))) };
        }
        self.slot(key).recv = kind;
    }

    pub(in crate::backend::uring) fn filled(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        let Some(Held::InFlight(buf, len)) = self.recv_bufs.take(key) else { return None };
        if result > 0 && result as u32 > len {
            self.fail(Violation("a receive wrote more bytes than it was given room for"));
            // What the kernel writes to is not known any more.
            self.recv_bufs.put(key, Held::InFlight(buf, len));
            return None;
        }
        // SAFETY: this is the final completion of the receive.
        let mut buf = unsafe { buf.take() };
        if result == -libc::EAGAIN && self.style.polled {
            self.recv_bufs.put(key, Held::Waiting(buf));
            self.step(key, Kind::RecvIntoPoll);
            return None;
        }
        if result > 0 {
            // SAFETY: the kernel wrote that many bytes at the start of the room, which has `len`
            // (checked above).
            unsafe { buf.advance(result as usize) };
        }
        Some(Completed::last(key, Outcome::Filled(buf, OpResult::of_cqe(result))))
    }

    /// Tier `polled`: data arrived.
    pub(in crate::backend::uring) fn readable_into(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        if result >= 0 {
            self.step(key, Kind::RecvInto);
            return None;
        }
        self.end_waiting(key, OpResult::of_cqe(result))
    }

    pub(super) fn recv_into_stopped(&mut self, key: Key) {
        let ended = self.end_waiting(key, OpResult::failed(CANCELED));
        self.done.extend(ended);
    }

    fn end_waiting(&mut self, key: Key, result: OpResult) -> Option<Completed<OwnedFd>> {
        match self.recv_bufs.take(key)? {
            Held::Waiting(buf) => Some(Completed::last(key, Outcome::Filled(buf, result))),
            held => {
                self.recv_bufs.put(key, held);
                None
            }
        }
    }
}
