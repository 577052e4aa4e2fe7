//! Operations as SQEs, one file per operation: its first SQE, the SQEs that follow, the meaning of
//! its CQEs. Owns: what the operations share, which is the staging of a following SQE, and cancels.
//! Invariant: an operation that needs another SQE has it staged or in `postponed`. Must not know
//! the queues of the engine.

mod accept;
mod close;
pub(super) mod connect;
mod hangup;
mod recv;
pub(super) mod recv_into;
pub(super) mod send;
mod shutdown;

use super::Uring;
use super::slot::flag;
use super::sqe::PlainSqe;
use super::token::{Kind, pack};
use crate::backend::{OpKind, Outcome};
use crate::error::Errno;
use crate::id::Key;
use io_uring::types;

/// An SQE that found the submission queue full. The next turn stages it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Postponed {
    /// The next SQE of an operation, of this kind.
    Sqe(Key, Kind),
    Cancel(Key, OpKind),
}

pub(super) const CANCELED: Errno = Errno(libc::ECANCELED);

impl Uring {
    /// Stages the next SQE of an operation, in the next turn if there is no room. An operation with
    /// a cancel request ends with ECANCELED instead.
    pub(super) fn continue_op(&mut self, key: Key, kind: Kind) {
        let op = op_of(kind);
        if self.slot(key).cancel_requested(op) {
            return self.end_canceled(key, kind);
        }
        let room = if kind == Kind::Connect {
            self.ring.make_connect_room()
        } else {
            self.ring.make_room()
        };
        if room.is_err() {
            self.postponed.push_back(Postponed::Sqe(key, kind));
            return;
        }
        match kind {
            Kind::Recv | Kind::RecvFirst | Kind::RecvPoll => self.push_recv(key, kind),
            Kind::RecvInto | Kind::RecvIntoPoll => self.push_recv_into(key, kind),
            Kind::SendPoll => self.push_send_poll(key),
            Kind::Connect => self.push_connect_with_send(key),
            Kind::Accept | Kind::AcceptPoll => self.push_accept(key, kind),
            Kind::Idle
            | Kind::Hangup
            | Kind::Socket
            | Kind::ConnectPoll
            | Kind::Send
            | Kind::SendZeroCopy
            | Kind::Close
            | Kind::Wake
            | Kind::Timeout
            | Kind::Cancel => {}
        }
    }

    fn end_canceled(&mut self, key: Key, kind: Kind) {
        match op_of(kind) {
            OpKind::Connect => self.connect_completed(key, Err(CANCELED)),
            OpKind::Accept => self.complete(key, Outcome::AcceptFailed(CANCELED)),
            OpKind::Recv if matches!(kind, Kind::RecvInto | Kind::RecvIntoPoll) => {
                self.recv_into_canceled(key)
            }
            OpKind::Recv => self.complete(key, Outcome::RecvEnded(Err(CANCELED))),
            OpKind::Send => self.send_canceled(key),
            OpKind::Hangup | OpKind::Close => {}
        }
    }

    pub(super) fn stage_postponed(&mut self) {
        for _ in 0..self.postponed.len() {
            match self.postponed.pop_front() {
                Some(Postponed::Sqe(key, kind)) if self.find_slot(key).is_some() => {
                    self.continue_op(key, kind)
                }
                Some(Postponed::Cancel(key, op)) if self.find_slot(key).is_some() => {
                    self.push_cancel(key, op)
                }
                Some(Postponed::Sqe(..) | Postponed::Cancel(..)) => {}
                None => return,
            }
        }
    }

    pub(super) fn cancel_op(&mut self, key: Key, op: OpKind) {
        if self.find_slot(key).is_none() {
            return;
        }
        if op == OpKind::Recv && self.slot(key).clear(flag::RECV_DELAYED) {
            return self.complete(key, Outcome::RecvEnded(Err(CANCELED)));
        }
        if op == OpKind::Connect && self.remove_retry(key) {
            return self.connect_completed(key, Err(CANCELED));
        }
        // If no SQE is in flight, the next one is postponed and is checked for this request, or the
        // operation has completed.
        self.slot(key).request_cancel(op);
        self.push_cancel(key, op);
    }

    fn push_cancel(&mut self, key: Key, op: OpKind) {
        let kind = self.slot(key).in_flight(op);
        let target = match kind {
            // Nothing in flight, or another operation has its place in the slot. A close is never
            // cancelled: it does not wait.
            _ if op_of(kind) != op || op == OpKind::Close => return,
            Kind::SendZeroCopy => match self.zero_copy_of(key) {
                Some(share) => pack(kind, share),
                None => return,
            },
            _ => pack(kind, key),
        };
        if self.ring.make_room().is_err() {
            self.postponed.push_back(Postponed::Cancel(key, op));
            return;
        }
        self.ring.push_cancel(target);
    }

    fn fd_of(&mut self, key: Key) -> types::Fd {
        types::Fd(self.slot(key).raw_fd())
    }
}

/// The operation of the contract that an SQE of this kind serves.
pub(super) fn op_of(kind: Kind) -> OpKind {
    match kind {
        Kind::Socket | Kind::Connect | Kind::ConnectPoll => OpKind::Connect,
        Kind::Recv | Kind::RecvFirst | Kind::RecvPoll | Kind::RecvInto | Kind::RecvIntoPoll => {
            OpKind::Recv
        }
        Kind::Send | Kind::SendZeroCopy | Kind::SendPoll => OpKind::Send,
        Kind::Accept | Kind::AcceptPoll => OpKind::Accept,
        Kind::Hangup => OpKind::Hangup,
        Kind::Close | Kind::Wake | Kind::Timeout | Kind::Cancel | Kind::Idle => OpKind::Close,
    }
}

/// POLL_ADD that completes when the socket is readable or the stream has ended.
fn poll_read(fd: types::Fd) -> PlainSqe {
    PlainSqe::poll(fd, libc::POLLIN | libc::POLLRDHUP)
}

/// The length field of an SQE, at most 1 GiB for what does not fit into 32 bits.
fn sqe_len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(1 << 30)
}

/// The result of an operation that returns no number of bytes.
pub(super) fn status(result: i32) -> Result<(), Errno> {
    if result < 0 { Err(Errno(result.saturating_neg())) } else { Ok(()) }
}
