//! Sending: SEND for one payload, SENDMSG for several, SEND_ZC for a large one; in tier `polled` a
//! full socket is polled. Owns: its entries, what their completions mean, and the batch meanwhile.
//! Invariant: what a send reads is `InFlight` in its slot until its completion; what a zero-copy
//! send reads is so by a share of its own until its notification.

use super::{CANCELED, entry_len};
use crate::backend::uring::Uring;
use crate::backend::uring::entry::Plain;
use crate::backend::uring::ring::QueueFull;
use crate::backend::uring::slot::mark;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Completed, OpKind, OpResult, Operation, Outcome, SendBatch, Started};
use crate::buf::{InFlight, Payload};
use crate::error::Violation;
use crate::id::Key;
use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode};
use std::os::fd::OwnedFd;

/// Zero-copy sends stop for a while when so much waits for notifications: those sends copy.
const ZERO_COPY_BYTES_MAX: usize = 64 << 20;

/// A payload that the kernel reads until its notification.
#[derive(Debug)]
pub(in crate::backend::uring) struct ZeroCopy {
    share: InFlight<Box<Payload>>,
    conn: Key,
    /// The result has not come yet; after it only the notification does.
    sending: bool,
}

impl Uring {
    #[inline]
    pub(in crate::backend::uring) fn start_send(
        &mut self,
        key: Key,
        mut batch: SendBatch,
    ) -> Started {
        assert!(self.slot(key).batch.is_none(), "one send at a time");
        let entry = match self.send_entry(key, &mut batch) {
            Ok(entry) => entry,
            Err(QueueFull) => return Started::NoRoom(Operation::Send(batch)),
        };
        let slot = self.slot(key);
        slot.unstop(OpKind::Send);
        if slot.send == Kind::Idle {
            slot.send = Kind::Send;
        }
        slot.batch = Some(InFlight::new(batch));
        // SAFETY: the payloads are in a batch that is `InFlight` in its slot until the completion,
        // or in a share that is until the notification. Header and list of a gathered send are in
        // the arena, which keeps them until the entry is submitted.
        unsafe { self.ring.push(entry) };
        Started::InFlight
    }

    /// The entry of a send; after it room for one more has been made.
    #[inline]
    fn send_entry(&mut self, key: Key, batch: &mut SendBatch) -> Result<Entry, QueueFull> {
        // No MSG_WAITALL: the kernel gives up polling for one operation after 128 partial sends,
        // and lets a worker block for the rest. A few slow readers could hold all workers. A short
        // send is continued by the engine instead.
        let flags = libc::MSG_NOSIGNAL | if self.style.polled { libc::MSG_DONTWAIT } else { 0 };
        if batch.zero_copy() && self.style.zero_copy && self.zero_copy_bytes <= ZERO_COPY_BYTES_MAX
        {
            return self.zero_copy_entry(key, batch, flags);
        }
        if batch.entries() == 1 || self.gather_max == 1 {
            self.ring.make_room()?;
            let part = batch.front();
            let (start, len) = (part.as_ptr(), entry_len(part.len()));
            batch.set_given(len as usize);
            let entry = opcode::Send::new(self.fd_of(key), start, len).flags(flags).build();
            return Ok(entry.user_data(pack(Kind::Send, key)));
        }
        self.gathered_entry(key, batch, flags)
    }

    #[inline(never)]
    fn gathered_entry(
        &mut self,
        key: Key,
        batch: &mut SendBatch,
        flags: i32,
    ) -> Result<Entry, QueueFull> {
        let most = self.ring.make_gather_room(self.gather_max.min(batch.entries()))?;
        let (message, given) = self.ring.arena.message(batch.parts(most));
        batch.set_given(given);
        let entry = opcode::SendMsg::new(self.fd_of(key), message).flags(flags as u32).build();
        Ok(entry.user_data(pack(Kind::Send, key)))
    }

    #[inline(never)]
    fn zero_copy_entry(
        &mut self,
        key: Key,
        batch: &mut SendBatch,
        flags: i32,
    ) -> Result<Entry, QueueFull> {
        self.ring.make_room()?;
        let share = Box::new(batch.share_front().unwrap_or_default());
        let part = batch.front();
        let (start, len) = (part.as_ptr(), entry_len(part.len()));
        batch.set_given(len as usize);
        self.zero_copy_bytes += share.len();
        let share = self.zero_copies.insert(ZeroCopy {
            share: InFlight::new(share),
            conn: key,
            sending: true,
        });
        self.stats.zero_copy_sends += 1;
        self.slot(key).send = Kind::SendZeroCopy;
        let entry = opcode::SendZc::new(self.fd_of(key), start, len).flags(flags).build();
        Ok(entry.user_data(pack(Kind::SendZeroCopy, share)))
    }

    /// A payload that is linked to a connect: its batch waits in the slot. Room must have been
    /// made.
    pub(super) fn push_linked_send(&mut self, key: Key) {
        let fd = self.fd_of(key);
        let slot = self.slot(key);
        let Some(batch) = &slot.batch else { return };
        let part = batch.get().front();
        let entry = opcode::Send::new(fd, part.as_ptr(), entry_len(part.len()))
            .flags(libc::MSG_NOSIGNAL)
            .build();
        slot.send = Kind::Send;
        slot.set(mark::EARLY, false);
        self.stats.early_sends += 1;
        // SAFETY: the payload is in a batch that is `InFlight` in its slot until the completion.
        unsafe { self.ring.push(entry.user_data(pack(Kind::Send, key))) };
    }

    /// Tier `polled`: the socket was full. Room must have been made.
    pub(super) fn push_send_poll(&mut self, key: Key) {
        let entry = Plain::poll(self.fd_of(key), libc::POLLOUT);
        self.ring.push_plain(entry, pack(Kind::SendPoll, key));
        self.slot(key).send = Kind::SendPoll;
    }

    #[inline]
    pub(in crate::backend::uring) fn sent(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        if result == -libc::EAGAIN && self.style.polled {
            self.step(key, Kind::SendPoll);
            return None;
        }
        self.send_ended(key, result)
    }

    /// Tier `polled`: there is room in the socket. The engine gathers anew.
    pub(in crate::backend::uring) fn writable(
        &mut self,
        key: Key,
        result: i32,
    ) -> Option<Completed<OwnedFd>> {
        self.send_ended(key, result.min(0))
    }

    pub(super) fn send_stopped(&mut self, key: Key) {
        let ended = self.send_ended(key, -libc::ECANCELED);
        self.done.extend(ended);
    }

    #[inline]
    fn send_ended(&mut self, key: Key, result: i32) -> Option<Completed<OwnedFd>> {
        let slot = &mut self.slots[key.slot()];
        slot.set(mark::UNUSED, false);
        let batch = slot.batch.take()?;
        if result > 0 && result as usize > batch.get().given() {
            slot.batch = Some(batch);
            self.fail(Violation("a send took more bytes than it was given"));
            return None;
        }
        if slot.take(mark::HELD) {
            self.begin_held_recv(key);
        }
        // SAFETY: this is the final completion of what read the batch; a zero-copy send goes on
        // with its own share.
        let batch = unsafe { batch.take() };
        Some(Completed::last(key, Outcome::Sent(batch, OpResult::of_cqe(result))))
    }

    /// Gives a batch back that the kernel never knew of: the connect that it was to go with has
    /// ended.
    pub(super) fn early_batch_back(&mut self, key: Key, connected: bool) {
        let slot = self.slot(key);
        if !slot.take(mark::EARLY) {
            return;
        }
        let Some(batch) = slot.batch.take() else { return };
        // SAFETY: no entry that reads it was ever staged.
        let batch = unsafe { batch.take() };
        let result = if connected { OpResult::bytes(0) } else { OpResult::failed(CANCELED) };
        self.finish(key, Outcome::Sent(batch, result));
    }

    /// The result of a zero-copy send, or its notification.
    #[inline(never)]
    pub(in crate::backend::uring) fn zero_copy_completed(
        &mut self,
        share: Key,
        result: i32,
        flags: u32,
    ) -> Option<Completed<OwnedFd>> {
        let Some(zero_copy) = self.zero_copies.get_mut(share) else {
            self.stats.unknown_completions += 1;
            return None;
        };
        let (conn, notification, more) =
            (zero_copy.conn, cqueue::notif(flags), cqueue::more(flags));
        if notification == zero_copy.sending || notification && more {
            self.fail(Violation("a zero-copy send and its notification completed out of order"));
            return None;
        }
        zero_copy.sending = false;
        if !more {
            self.ring.ended();
        }
        if notification {
            return self.release(share);
        }
        let in_flight = self.known(conn).is_some_and(|slot| slot.send == Kind::SendZeroCopy);
        if !in_flight {
            self.fail(Violation("a completion for a send that is not in flight"));
            return None;
        }
        self.slots[conn.slot()].send = Kind::Idle;
        let sent = self.sent(conn, result);
        if !more && self.violation.is_none() {
            let released = self.release(share);
            self.done.extend(released);
        }
        sent
    }

    fn release(&mut self, share: Key) -> Option<Completed<OwnedFd>> {
        let zero_copy = self.zero_copies.remove(share)?;
        // SAFETY: the notification came, or a result that announces none: the kernel has let go of
        // the payload.
        let payload = unsafe { zero_copy.share.take() };
        self.zero_copy_bytes -= payload.len();
        Some(Completed::last(zero_copy.conn, Outcome::Released(payload)))
    }

    /// The share of the zero-copy send that is in flight for a connection.
    pub(in crate::backend::uring) fn zero_copy_of(&self, conn: Key) -> Option<Key> {
        let sending =
            |(_, zero_copy): &(Key, &ZeroCopy)| zero_copy.sending && zero_copy.conn == conn;
        self.zero_copies.iter().find(sending).map(|(share, _)| share)
    }
}
