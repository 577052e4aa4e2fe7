//! Sending. Owns: send(2) and sendmsg(2), and the batches that wait for writability. Invariant: a
//! send that was cut short marks its slot as blocked, and the next one waits for the edge of
//! EPOLLOUT. Must not know: payloads that were queued after the batch.
#![allow(unsafe_code)]

use super::super::{Completed, EpollBackend, Outcome, bit};
use super::canceled;
use crate::backend::{OpResult, SendBatch, Started};
use crate::buf::SendQueue;
use crate::error::Errno;
use crate::id::Key;
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};

/// IOV_MAX: the most that sendmsg(2) takes.
const IOVECS_MAX: usize = 1024;

impl EpollBackend {
    /// Sends at once. On EAGAIN the batch waits for the edge and then completes with 0 bytes, so
    /// that the engine starts a send with all that was queued meanwhile.
    #[inline(always)]
    pub(in super::super) fn start_send(&mut self, key: Key, mut batch: SendBatch) -> Started {
        let slot = self.slot(key);
        if slot.state & (bit::BLOCKED | bit::SEND | bit::CONNECT | bit::RETRY) != 0 {
            return self.wait_writable(key, batch);
        }
        let fd = slot.raw_fd();
        match self.send_now(fd, &mut batch) {
            Ok(sent) if sent == batch.given() => Started::Sent(batch, OpResult::bytes(sent)),
            result => self.finish_partial_send(key, batch, result),
        }
    }

    /// Sends from the front of the batch, and returns how many bytes the kernel took.
    /// [`SendQueue::given`] is how many it was given.
    #[inline(always)]
    pub(super) fn send_now(&mut self, fd: RawFd, batch: &mut SendQueue) -> Result<usize, Errno> {
        match batch.entries() {
            1 => {
                let len = batch.front_len();
                batch.set_given(len);
                self.send_one(fd, batch.front())
            }
            _ => self.send_gathered(fd, batch),
        }
    }

    #[inline(always)]
    fn send_one(&mut self, fd: RawFd, bytes: &[u8]) -> Result<usize, Errno> {
        let (start, len) = (bytes.as_ptr(), bytes.len());
        // SAFETY: `bytes` is borrowed through the call. (MSG_NOSIGNAL: EPIPE instead of SIGPIPE.)
        self.retry_interrupted(|| unsafe { libc::send(fd, start.cast(), len, libc::MSG_NOSIGNAL) })
    }

    #[inline(never)]
    fn send_gathered(&mut self, fd: RawFd, batch: &mut SendQueue) -> Result<usize, Errno> {
        let mut iovecs = [const { MaybeUninit::<libc::iovec>::uninit() }; IOVECS_MAX];
        let mut count = 0;
        let mut given = 0;
        for part in batch.parts(self.parameters.gather_max) {
            let iov_base = part.as_ptr().cast_mut().cast();
            iovecs[count].write(libc::iovec { iov_base, iov_len: part.len() });
            count += 1;
            given += part.len();
        }
        batch.set_given(given);
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr().cast();
        message.msg_iovlen = count as _;
        // SAFETY: the first `count` entries are initialised and point into payloads of `batch`,
        // which is borrowed through the call. sendmsg(2) only reads.
        self.retry_interrupted(|| unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL) })
    }

    /// The kernel took less than all of the batch: the next send waits for the edge.
    #[inline(never)]
    fn finish_partial_send(
        &mut self,
        key: Key,
        batch: SendBatch,
        result: Result<usize, Errno>,
    ) -> Started {
        let started = match result {
            Ok(sent) => Started::Sent(batch, OpResult::bytes(sent)),
            Err(Errno(libc::EAGAIN)) => self.wait_writable(key, batch),
            Err(errno) => return Started::Sent(batch, OpResult::failed(errno)),
        };
        self.mark_blocked(key);
        started
    }

    #[inline(never)]
    fn wait_writable(&mut self, key: Key, batch: SendBatch) -> Started {
        let slot = self.slot(key);
        assert!(slot.send.is_none(), "an operation of the kind is in flight");
        slot.state |= bit::SEND;
        slot.send = Some(batch);
        Started::InFlight
    }

    /// The send buffer of the socket is full: sends wait for the edge.
    pub(super) fn mark_blocked(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.state = slot.state & !bit::WRITABLE | bit::BLOCKED;
        // EPOLL_CTL_MOD fails only for lack of memory. The slot then counts as writable, so that
        // sends are retried without an edge.
        if self.register_output(key).is_err() {
            let slot = self.slot(key);
            slot.state &= !(bit::BLOCKED | bit::OUTPUT_REGISTERED);
            slot.state |= bit::WRITABLE;
            self.add_work(key);
        }
    }

    /// The socket became writable: completes the waiting send with 0 bytes.
    pub(in super::super) fn finish_waiting_send(&mut self, key: Key) -> Completed<OwnedFd> {
        let slot = self.slot(key);
        slot.state &= !bit::SEND;
        let batch = slot.send.take().expect("an armed send has its batch");
        Completed::last(key, Outcome::Sent(batch, OpResult::bytes(0)))
    }

    pub(super) fn cancel_send(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.state &= !bit::SEND;
        if let Some(batch) = slot.send.take() {
            self.complete_send(key, batch, canceled());
        }
    }
}
