//! Send: SEND for one payload, SENDMSG for several, SEND_ZC for a large one; in tier `polled` a
//! POLL_ADD if the socket is full. Owns: its SQEs, the meaning of their CQEs, and the batch until
//! then. Invariant: the batch of a send is `InFlight` in its slot until the final CQE; the payload
//! of a zero-copy send is `InFlight` in a share of its own until the notification (F_NOTIF).

use super::{CANCELED, sqe_len};
use crate::backend::uring::Uring;
use crate::backend::uring::ring::QueueFull;
use crate::backend::uring::slot::flag;
use crate::backend::uring::sqe::PlainSqe;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, OpResult, Operation, Outcome, SendBatch, Started};
use crate::buf::{InFlight, Payload};
use crate::error::Violation;
use crate::id::Key;
use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode};
use std::os::fd::OwnedFd;

/// At most this many bytes wait for notifications; beyond it sends copy.
const ZERO_COPY_BYTES_MAX: usize = 64 << 20;

/// A share of a payload that the kernel reads until the notification.
#[derive(Debug)]
pub(in crate::backend::uring) struct ZeroCopyShare {
    share: InFlight<Box<Payload>>,
    conn: Key,
    /// The CQE with the result has not come; only the notification follows it.
    result_pending: bool,
}

impl Uring {
    #[inline]
    pub(in crate::backend::uring) fn start_send(
        &mut self,
        key: Key,
        mut batch: SendBatch,
    ) -> Started {
        assert!(self.slot(key).batch.is_none(), "one send at a time");
        let sqe = match self.send_sqe(key, &mut batch) {
            Ok(sqe) => sqe,
            Err(QueueFull) => return Started::NoRoom(Operation::Send(batch)),
        };
        let slot = self.slot(key);
        slot.clear_cancel(OpKind::Send);
        if slot.send == Kind::Idle {
            slot.send = Kind::Send;
        }
        slot.batch = Some(InFlight::new(batch));
        // SAFETY: the payloads are in a batch that is `InFlight` in its slot until the completion,
        // or in a share that is `InFlight` until the notification. The message header and the
        // iovecs are in the arena, which keeps them until the SQE is submitted.
        unsafe { self.ring.push(sqe) };
        Started::InFlight
    }

    /// The SQE of a send. Makes room for it.
    #[inline]
    fn send_sqe(&mut self, key: Key, batch: &mut SendBatch) -> Result<Entry, QueueFull> {
        // No MSG_WAITALL: after 128 partial sends of one operation the kernel stops polling, and a
        // worker blocks for the rest. A few slow peers could occupy all workers. The engine sends
        // the rest of a short send with the next operation.
        let flags = libc::MSG_NOSIGNAL | if self.features.polled { libc::MSG_DONTWAIT } else { 0 };
        if batch.zero_copy()
            && self.features.zero_copy
            && self.zero_copy_bytes <= ZERO_COPY_BYTES_MAX
        {
            return self.zero_copy_sqe(key, batch, flags);
        }
        if batch.entries() == 1 || self.gather_max == 1 {
            self.ring.make_room()?;
            let part = batch.front();
            let (start, len) = (part.as_ptr(), sqe_len(part.len()));
            batch.set_given(len as usize);
            let sqe = opcode::Send::new(self.fd_of(key), start, len).flags(flags).build();
            return Ok(sqe.user_data(pack(Kind::Send, key)));
        }
        self.gather_sqe(key, batch, flags)
    }

    #[inline(never)]
    fn gather_sqe(
        &mut self,
        key: Key,
        batch: &mut SendBatch,
        flags: i32,
    ) -> Result<Entry, QueueFull> {
        let parts_max = self.ring.make_gather_room(self.gather_max.min(batch.entries()))?;
        let (message, given) = self.ring.arena.message(batch.parts(parts_max));
        batch.set_given(given);
        let sqe = opcode::SendMsg::new(self.fd_of(key), message).flags(flags as u32).build();
        Ok(sqe.user_data(pack(Kind::Send, key)))
    }

    #[inline(never)]
    fn zero_copy_sqe(
        &mut self,
        key: Key,
        batch: &mut SendBatch,
        flags: i32,
    ) -> Result<Entry, QueueFull> {
        self.ring.make_room()?;
        let share = Box::new(batch.share_front().unwrap_or_default());
        let part = batch.front();
        let (start, len) = (part.as_ptr(), sqe_len(part.len()));
        batch.set_given(len as usize);
        self.zero_copy_bytes += share.len();
        let share = self.zero_copy_shares.insert(ZeroCopyShare {
            share: InFlight::new(share),
            conn: key,
            result_pending: true,
        });
        self.stats.zero_copy_sends += 1;
        self.slot(key).send = Kind::SendZeroCopy;
        let sqe = opcode::SendZc::new(self.fd_of(key), start, len).flags(flags).build();
        Ok(sqe.user_data(pack(Kind::SendZeroCopy, share)))
    }

    /// Stages the send that is linked to a CONNECT. Its batch is in the slot. Call
    /// `Ring::make_connect_room` first.
    pub(super) fn push_linked_send(&mut self, key: Key) {
        let fd = self.fd_of(key);
        let slot = self.slot(key);
        let Some(batch) = &slot.batch else { return };
        let part = batch.get().front();
        let sqe = opcode::Send::new(fd, part.as_ptr(), sqe_len(part.len()))
            .flags(libc::MSG_NOSIGNAL)
            .build();
        slot.send = Kind::Send;
        slot.set(flag::EARLY_BATCH, false);
        self.stats.early_sends += 1;
        // SAFETY: the payload is in a batch that is `InFlight` in its slot until the completion.
        unsafe { self.ring.push(sqe.user_data(pack(Kind::Send, key))) };
    }

    /// Tier `polled`: the socket is full. Call `Ring::make_room` first.
    pub(super) fn push_send_poll(&mut self, key: Key) {
        let sqe = PlainSqe::poll(self.fd_of(key), libc::POLLOUT);
        self.ring.push_plain(sqe, pack(Kind::SendPoll, key));
        self.slot(key).send = Kind::SendPoll;
    }

    #[inline]
    pub(in crate::backend::uring) fn send_completed(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        if result == -libc::EAGAIN && self.features.polled {
            self.continue_op(key, Kind::SendPoll);
            return None;
        }
        self.send_ended(key, result)
    }

    /// Tier `polled`: the poll completed. The socket is writable: the batch goes back to the engine
    /// with 0 bytes sent, and the engine sends again.
    pub(in crate::backend::uring) fn send_polled(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        self.send_ended(key, result.min(0))
    }

    pub(super) fn send_canceled(&mut self, key: Key) {
        let ended = self.send_ended(key, -libc::ECANCELED);
        self.completed.extend(ended);
    }

    #[inline]
    fn send_ended(&mut self, key: Key, result: i32) -> Option<Completed<OwnedFd>> {
        let slot = &mut self.slots[key.slot()];
        slot.set(flag::NOTHING_SENT, false);
        let batch = slot.batch.take()?;
        if result > 0 && result as usize > batch.get().given() {
            slot.batch = Some(batch);
            self.fail(Violation("a send reports more bytes than it was given"));
            return None;
        }
        if slot.clear(flag::RECV_DELAYED) {
            self.start_delayed_recv(key);
        }
        // SAFETY: this is the final completion of the SQE that read the batch, or the result of a
        // zero-copy send, whose notification covers a share of its own.
        let batch = unsafe { batch.take() };
        Some(Completed::last(key, Outcome::Sent(batch, OpResult::from_cqe(result))))
    }

    /// Ends a batch that came with a connect and that no SQE reads: the connect has completed.
    pub(super) fn return_early_batch(&mut self, key: Key, connected: bool) {
        let slot = self.slot(key);
        if !slot.clear(flag::EARLY_BATCH) {
            return;
        }
        let Some(batch) = slot.batch.take() else { return };
        // SAFETY: no SQE that reads it was staged.
        let batch = unsafe { batch.take() };
        let result = if connected { OpResult::bytes(0) } else { OpResult::failed(CANCELED) };
        self.complete(key, Outcome::Sent(batch, result));
    }

    /// A CQE of a zero-copy send: its result or its notification.
    #[inline(never)]
    pub(in crate::backend::uring) fn zero_copy_completed(
        &mut self,
        share: Key,
        result: i32,
        flags: u32,
    ) -> Option<Completed<OwnedFd>> {
        let Some(zero_copy) = self.zero_copy_shares.get_mut(share) else {
            self.stats.unknown_completions += 1;
            return None;
        };
        let (conn, notification, more) =
            (zero_copy.conn, cqueue::notif(flags), cqueue::more(flags));
        if notification == zero_copy.result_pending || notification && more {
            self.fail(Violation("a zero-copy send and its notification completed out of order"));
            return None;
        }
        zero_copy.result_pending = false;
        if !more {
            self.ring.op_completed();
        }
        if notification {
            return self.release_share(share);
        }
        let in_flight = self.find_slot(conn).is_some_and(|slot| slot.send == Kind::SendZeroCopy);
        if !in_flight {
            self.fail(Violation("a completion for a send that is not in flight"));
            return None;
        }
        self.slots[conn.slot()].send = Kind::Idle;
        let sent = self.send_completed(conn, result);
        if !more && self.violation.is_none() {
            let released = self.release_share(share);
            self.completed.extend(released);
        }
        sent
    }

    fn release_share(&mut self, share: Key) -> Option<Completed<OwnedFd>> {
        let zero_copy = self.zero_copy_shares.remove(share)?;
        // SAFETY: the notification came, or a result without F_MORE: the kernel has released the
        // payload.
        let payload = unsafe { zero_copy.share.take() };
        self.zero_copy_bytes -= payload.len();
        Some(Completed::last(zero_copy.conn, Outcome::Released(payload)))
    }

    /// The share of a connection's zero-copy send whose result has not come.
    pub(in crate::backend::uring) fn zero_copy_of(&self, conn: Key) -> Option<Key> {
        let is_pending = |(_, zero_copy): &(Key, &ZeroCopyShare)| {
            zero_copy.result_pending && zero_copy.conn == conn
        };
        self.zero_copy_shares.iter().find(is_pending).map(|(share, _)| share)
    }
}
