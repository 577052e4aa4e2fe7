//! Operations as submission queue entries, one file each: what an operation starts with, its steps
//! on older kernels, what its completions mean. Owns: what the operations share, which is further
//! steps, and cancelling. Invariant: an operation that has a next step either has its entry staged
//! or is on the list of steps.

mod accept;
mod close;
pub(super) mod connect;
mod hangup;
mod recv;
pub(super) mod recv_into;
pub(super) mod send;
mod shutdown;

use super::Uring;
use super::entry::Plain;
use super::slot::mark;
use super::token::{Kind, pack};
use crate::backend::{OpKind, Outcome};
use crate::error::Errno;
use crate::id::Key;
use io_uring::types;

/// Something that found the submission queue full.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The next entry of an operation.
    Next(Key, Kind),
    Cancel(Key, OpKind),
}

pub(super) const CANCELED: Errno = Errno(libc::ECANCELED);

impl Uring {
    /// The next entry of an operation that goes on; if there is no room it waits for the next turn.
    /// One that was advised to end meanwhile ends here.
    pub(super) fn step(&mut self, key: Key, kind: Kind) {
        let op = op_of(kind);
        if self.slot(key).is_stopped(op) {
            return self.step_stopped(key, kind);
        }
        let room = if kind == Kind::Connect {
            self.ring.make_connect_room()
        } else {
            self.ring.make_room()
        };
        if room.is_err() {
            self.steps.push_back(Step::Next(key, kind));
            return;
        }
        match kind {
            Kind::Recv | Kind::RecvFirst | Kind::RecvPoll => self.push_recv(key, kind),
            Kind::RecvInto | Kind::RecvIntoPoll => self.push_recv_into(key, kind),
            Kind::SendPoll => self.push_send_poll(key),
            Kind::Connect => self.connect_made_socket(key),
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

    fn step_stopped(&mut self, key: Key, kind: Kind) {
        match op_of(kind) {
            OpKind::Connect => self.connect_ended(key, Err(CANCELED)),
            OpKind::Accept => self.finish(key, Outcome::AcceptFailed(CANCELED)),
            OpKind::Recv if matches!(kind, Kind::RecvInto | Kind::RecvIntoPoll) => {
                self.recv_into_stopped(key)
            }
            OpKind::Recv => self.finish(key, Outcome::RecvEnded(Err(CANCELED))),
            OpKind::Send => self.send_stopped(key),
            OpKind::Hangup | OpKind::Close => {}
        }
    }

    pub(super) fn take_steps(&mut self) {
        for _ in 0..self.steps.len() {
            let Some(step) = self.steps.pop_front() else { return };
            match step {
                Step::Next(key, kind) if self.known(key).is_some() => self.step(key, kind),
                Step::Cancel(key, op) if self.known(key).is_some() => self.push_cancel(key, op),
                Step::Next(..) | Step::Cancel(..) => {}
            }
        }
    }

    pub(super) fn cancel_op(&mut self, key: Key, op: OpKind) {
        if self.known(key).is_none() {
            return;
        }
        if op == OpKind::Recv && self.slot(key).take(mark::HELD) {
            return self.finish(key, Outcome::RecvEnded(Err(CANCELED)));
        }
        if op == OpKind::Connect && self.forget_retry(key) {
            return self.connect_ended(key, Err(CANCELED));
        }
        // Where nothing is in flight, the next step waits for room and will see this; or the
        // operation has ended already.
        self.slot(key).stop(op);
        self.push_cancel(key, op);
    }

    fn push_cancel(&mut self, key: Key, op: OpKind) {
        let kind = self.slot(key).in_flight(op);
        let target = match kind {
            // A close has no next step and never waits; what else has its place in the slot is not
            // meant.
            _ if op_of(kind) != op || op == OpKind::Close => return,
            Kind::SendZeroCopy => match self.zero_copy_of(key) {
                Some(share) => pack(kind, share),
                None => return,
            },
            _ => pack(kind, key),
        };
        if self.ring.make_room().is_err() {
            self.steps.push_back(Step::Cancel(key, op));
            return;
        }
        self.ring.push_cancel(target);
    }

    fn fd_of(&mut self, key: Key) -> types::Fd {
        types::Fd(self.slot(key).raw_fd())
    }
}

/// The operation of the contract that a kind of entry serves.
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

/// An entry that completes when the socket is readable, or at its end.
fn poll_read(fd: types::Fd) -> Plain {
    Plain::poll(fd, libc::POLLIN | libc::POLLRDHUP)
}

/// The length field of an entry.
fn entry_len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(1 << 30)
}

/// What a result says that is no number of bytes.
pub(super) fn status(result: i32) -> Result<(), Errno> {
    if result < 0 { Err(Errno(result.saturating_neg())) } else { Ok(()) }
}
