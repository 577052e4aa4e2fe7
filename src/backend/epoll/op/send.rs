//! Sending. Owns: send(2) and sendmsg(2), and the batches that wait for writability. Invariant: a
//! send that was cut short marks its slot as blocked, and the next one waits for the edge. Must not
//! know: what is queued behind the batch.
#![allow(unsafe_code)]

use super::super::{Completed, EpollBackend, Outcome, bit};
use super::canceled;
use crate::backend::{OpResult, SendBatch, Started};
use crate::buf::SendQueue;
use crate::error::Errno;
use crate::id::Key;
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};

const IOVECS_MAX: usize = 1024;

impl EpollBackend {
    /// Tries at once. On EAGAIN the batch waits for the edge and then comes back with nothing
    /// taken, so that the engine gathers anew.
    #[inline(always)]
    pub(in super::super) fn start_send(&mut self, key: Key, mut batch: SendBatch) -> Started {
        let slot = self.slot(key);
        if slot.state & (bit::BLOCKED | bit::SEND | bit::CONNECT | bit::RETRY) != 0 {
            return self.await_writable(key, batch);
        }
        let fd = slot.raw_fd();
        match self.try_send(fd, &mut batch) {
            Ok(sent) if sent == batch.given() => Started::Sent(batch, OpResult::bytes(sent)),
            result => self.cut_short(key, batch, result),
        }
    }

    /// How many bytes of the batch the kernel took. The batch notes how many it was given.
    #[inline(always)]
    pub(super) fn try_send(&mut self, fd: RawFd, batch: &mut SendQueue) -> Result<usize, Errno> {
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
        // SAFETY: `bytes` is borrowed through the call. MSG_NOSIGNAL: an error, not a SIGPIPE.
        self.patiently(|| unsafe { libc::send(fd, start.cast(), len, libc::MSG_NOSIGNAL) })
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
        // SAFETY: the first `count` entries are initialised, and point into payloads of `batch`,
        // which is borrowed through the call; `Payload`'s bytes do not move.
        self.patiently(|| unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL) })
    }

    /// Not all of a send was taken: the rest waits for the edge.
    #[inline(never)]
    fn cut_short(&mut self, key: Key, batch: SendBatch, result: Result<usize, Errno>) -> Started {
        let started = match result {
            Ok(sent) => Started::Sent(batch, OpResult::bytes(sent)),
            Err(Errno(libc::EAGAIN)) => self.await_writable(key, batch),
            Err(errno) => return Started::Sent(batch, OpResult::failed(errno)),
        };
        self.block(key);
        started
    }

    #[inline(never)]
    fn await_writable(&mut self, key: Key, batch: SendBatch) -> Started {
        let slot = self.slot(key);
        assert!(slot.send.is_none(), "one operation of a kind at a time");
        slot.state |= bit::SEND;
        slot.send = Some(batch);
        Started::InFlight
    }

    /// The socket has no room: sends wait for the edge.
    pub(super) fn block(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.state = slot.state & !bit::WRITABLE | bit::BLOCKED;
        // The kernel refuses this only when it is out of memory. Then sending is tried again and
        // again.
        if self.watch_output(key).is_err() {
            let slot = self.slot(key);
            slot.state &= !(bit::BLOCKED | bit::WATCHES_OUTPUT);
            slot.state |= bit::WRITABLE;
            self.list(key);
        }
    }

    /// The edge came for a batch that waited.
    pub(in super::super) fn send_writable(&mut self, key: Key) -> Completed<OwnedFd> {
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
