//! Receive into a caller's buffer: RECV; in tier `polled` a POLL_ADD first. Owns: its SQEs, the
//! meaning of their CQEs, and the buffers until then. Invariant: a buffer that the kernel writes to
//! stays in [`RecvBufs`] until its final CQE.

use super::{CANCELED, poll_read};
use crate::backend::uring::Uring;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, OpResult, Operation, Outcome, Started};
use crate::buf::{InFlight, RecvBuf};
use crate::error::Violation;
use crate::id::Key;
use io_uring::opcode;
use std::os::fd::OwnedFd;

/// A caller's buffer in a receive.
#[derive(Debug)]
enum BufState {
    /// No SQE references it.
    Unstaged(Box<RecvBuf>),
    /// The kernel writes to its room of this many bytes.
    InFlight(InFlight<Box<RecvBuf>>, u32),
}

/// The buffers of receives that have not completed, indexed by slot. Grows to the highest slot that
/// had one.
#[derive(Debug, Default)]
pub(in crate::backend::uring) struct RecvBufs(Vec<Option<BufState>>);

impl RecvBufs {
    fn put(&mut self, key: Key, buf: BufState) {
        let index = key.slot();
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        assert!(self.0[index].is_none(), "one receive at a time");
        self.0[index] = Some(buf);
    }

    fn take(&mut self, key: Key) -> Option<BufState> {
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
        self.slot(key).clear_cancel(OpKind::Recv);
        self.recv_bufs.put(key, BufState::Unstaged(buf));
        self.push_recv_into(
            key,
            if self.features.polled { Kind::RecvIntoPoll } else { Kind::RecvInto },
        );
        Started::InFlight
    }

    /// Call `Ring::make_room` first. The buffer must be in `recv_bufs`.
    pub(super) fn push_recv_into(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        assert_eq!(self.slot(key).recv, Kind::Idle, "one receive at a time");
        if kind == Kind::RecvIntoPoll {
            self.ring.push_plain(poll_read(fd), pack(kind, key));
        } else {
            let Some(BufState::Unstaged(mut buf)) = self.recv_bufs.take(key) else { return };
            let room = buf.room();
            let (start, len) = (room.as_mut_ptr(), u32::try_from(room.len()).unwrap_or(u32::MAX));
            self.recv_bufs.put(key, BufState::InFlight(InFlight::new(buf), len));
            let flags = if self.features.polled { libc::MSG_DONTWAIT } else { 0 };
            let sqe = opcode::Recv::new(fd, start.cast(), len).flags(flags).build();
            // SAFETY: the room is in a buffer that is `InFlight` until the completion.
            unsafe { self.ring.push(sqe.user_data(pack(kind, key))) };
        }
        self.slot(key).recv = kind;
    }

    pub(in crate::backend::uring) fn recv_into_completed(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        let Some(BufState::InFlight(buf, len)) = self.recv_bufs.take(key) else { return None };
        if result > 0 && result as u32 > len {
            self.fail(Violation("a receive wrote more bytes than its buffer has room for"));
            // The kernel may still write to the buffer: it stays in flight and is leaked.
            self.recv_bufs.put(key, BufState::InFlight(buf, len));
            return None;
        }
        // SAFETY: this is the final completion of the receive.
        let mut buf = unsafe { buf.take() };
        if result == -libc::EAGAIN && self.features.polled {
            self.recv_bufs.put(key, BufState::Unstaged(buf));
            self.continue_op(key, Kind::RecvIntoPoll);
            return None;
        }
        if result > 0 {
            // SAFETY: the kernel wrote this many bytes at the start of the room, which holds `len`
            // bytes (checked above).
            unsafe { buf.advance(result as usize) };
        }
        Some(Completed::last(key, Outcome::Filled(buf, OpResult::from_cqe(result))))
    }

    /// Tier `polled`: the poll completed. The socket is readable.
    pub(in crate::backend::uring) fn recv_into_polled(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        if result >= 0 {
            self.continue_op(key, Kind::RecvInto);
            return None;
        }
        self.end_unstaged(key, OpResult::from_cqe(result))
    }

    pub(super) fn recv_into_canceled(&mut self, key: Key) {
        let ended = self.end_unstaged(key, OpResult::failed(CANCELED));
        self.completed.extend(ended);
    }

    /// Ends a receive whose buffer no SQE references.
    fn end_unstaged(&mut self, key: Key, result: OpResult) -> Option<Completed<OwnedFd>> {
        match self.recv_bufs.take(key)? {
            BufState::Unstaged(buf) => Some(Completed::last(key, Outcome::Filled(buf, result))),
            in_flight => {
                self.recv_bufs.put(key, in_flight);
                None
            }
        }
    }
}
