//! The io_uring backend. An operation becomes one or more submission queue entries (SQEs), its
//! outcome comes from completion queue entries (CQEs), and one `io_uring_enter` per turn submits
//! and waits.
//!
//! Owns: the ring, the sockets, the receive buffers, and the memory of each operation in flight.
//! Invariant: a slot records which SQE of each direction is in flight and holds the memory that it
//! reads or writes; a CLOSE is staged only when no other SQE of the slot is in flight. Must not
//! know: connection states, send queues, timers.
//!
//! # One SQE, or a poll first
//!
//! Where the kernel polls by itself (FAST_POLL, 5.7), an operation is one SQE. With a
//! provided-buffer ring (5.19) the kernel selects the buffer of a receive when data arrives, and
//! with multishot (6.0) one SQE serves many receives. Otherwise a POLL_ADD comes first, and the
//! operation is staged when the poll completes: for receives in tier `oneshot` without a buffer
//! ring, so that an idle connection holds no buffer; for all operations in tier `polled`, so that
//! none occupies a kernel worker.
//!
//! # Violations
//!
//! Each CQE is checked before memory safety depends on it: its operation is in flight, a buffer
//! that it names is in the buffer ring, its byte count is within the memory of the operation. A CQE
//! that fails a check is a [`Violation`]. It fails the backend: `next` returns nothing more, and
//! the memory of the backend is leaked when it is dropped.
#![allow(unsafe_code)]

mod arena;
mod buffers;
mod bufring;
mod op;
mod probe;
mod reap;
mod ring;
pub(super) mod setup;
mod slot;
mod sqe;
mod sys;
#[cfg(test)]
mod tests;
mod token;
mod wait_timeout;

use super::{Backend, Completed, OpKind, Open, Operation, Outcome, SendBatch, Side, Started};
use crate::error::{Error, Violation};
use crate::id::{EngineNumber, Key};
use crate::net::{Addr, socket};
use crate::stats::Stats;
use crate::table::Table;
use crate::waker::WakerShared;
use buffers::Buffers;
use op::Postponed;
use op::connect::{PendingConnects, UnixRetry};
use op::recv_into::RecvBufs;
use op::send::ZeroCopyShare;
pub(super) use probe::Refusal;
use ring::Ring;
use slot::{Slot, flag};
use sqe::PlainSqe;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use token::{Kind, pack};

/// The io_uring features in use. They follow from the tier and the capabilities, and decide which
/// SQEs an operation takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    pub(super) multishot_recv: bool,
    /// With multishot receives: the first receive of a connection is single-shot; after a connect
    /// it is delayed until the first send completes.
    pub(super) adaptive_receives: bool,
    pub(super) multishot_accept: bool,
    /// SOCKET makes the socket of a connect, not socket(2).
    pub(super) socket_op: bool,
    /// Tier `polled`: a poll comes before each operation, and descriptors or flags are
    /// non-blocking.
    pub(super) polled: bool,
    /// DEFER_TASKRUN: the kernel posts CQEs only when the owner thread enters it.
    pub(super) deferred: bool,
    pub(super) zero_copy: bool,
}

#[derive(Debug)]
pub(crate) struct Uring {
    /// The first field: the ring is closed before the memory that the kernel uses is freed.
    ring: Ring,
    buffers: Buffers,
    features: Features,
    engine: EngineNumber,
    epoch: Instant,
    waker_shared: Arc<WakerShared>,
    wake_armed: bool,
    gather_max: usize,
    slots: Vec<Slot>,
    recv_bufs: RecvBufs,
    connects: PendingConnects,
    zero_copy_shares: Table<ZeroCopyShare>,
    /// Bytes of payloads in `zero_copy_shares`.
    zero_copy_bytes: usize,
    /// Completed operations that `next` has not returned yet.
    completed: VecDeque<Completed<OwnedFd>>,
    /// SQEs that found the submission queue full.
    postponed: VecDeque<Postponed>,
    unix_retries: Vec<UnixRetry>,
    /// Hang-up polls of released connections: cancelled, and not completed yet.
    abandoned_watches: usize,
    /// The event fd that is registered with the ring (tier `deferred`).
    event_fd: Option<OwnedFd>,
    stats: Stats,
    /// The first violation: the backend has failed.
    violation: Option<Violation>,
}

impl Uring {
    fn new(
        ring: Ring,
        buffers: Buffers,
        features: Features,
        waker_shared: Arc<WakerShared>,
        parameters: &super::Parameters,
    ) -> Uring {
        Uring {
            ring,
            buffers,
            features,
            engine: parameters.engine,
            epoch: Instant::now(),
            waker_shared,
            wake_armed: false,
            gather_max: parameters.gather_max,
            slots: Vec::with_capacity(parameters.connections_reserved),
            recv_bufs: RecvBufs::default(),
            connects: PendingConnects::default(),
            zero_copy_shares: Table::new(parameters.engine, 0),
            zero_copy_bytes: 0,
            completed: VecDeque::new(),
            postponed: VecDeque::new(),
            unix_retries: Vec::new(),
            abandoned_watches: 0,
            event_fd: None,
            stats: Stats::default(),
            violation: None,
        }
    }

    /// # Panics
    /// If the key is stale: the engine passes only keys that are open.
    #[inline]
    fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.slot()];
        assert_eq!(slot.generation, key.generation(), "a stale key");
        slot
    }

    /// The slot of a key; `None` if the key is stale.
    fn find_slot(&self, key: Key) -> Option<&Slot> {
        self.slots.get(key.slot()).filter(|slot| slot.generation == key.generation())
    }

    fn open_slot(&mut self, key: Key, fd: Option<OwnedFd>) {
        let index = key.slot();
        while self.slots.len() <= index {
            self.slots.push(Slot::new(None, 0));
        }
        self.slots[index] = Slot::new(fd, key.generation());
    }

    fn complete(&mut self, key: Key, outcome: Outcome<OwnedFd>) {
        self.completed.push_back(Completed::last(key, outcome));
    }

    /// Fails the backend: a CQE was invalid. `next` returns nothing more.
    #[cold]
    fn fail(&mut self, violation: Violation) {
        if self.violation.is_none() {
            self.violation = Some(violation);
            self.buffers.leak_on_drop();
        }
        self.stats.kernel_violations += 1;
    }

    fn arm_wake(&mut self) {
        if self.wake_armed || self.ring.make_room().is_err() {
            return;
        }
        let sqe = PlainSqe::poll_fd(self.waker_shared.fd(), libc::POLLIN);
        self.ring.push_plain(sqe, pack(Kind::Wake, Key::NONE));
        self.wake_armed = true;
    }

    /// Cancels the TIMEOUT that bounds waits and reaps it, if nothing else is in flight. A
    /// cancelled TIMEOUT completes at once.
    fn end_wait_timeout(&mut self) {
        if self.ring.operations_in_flight() > 0 {
            return;
        }
        self.ring.cancel_wait_timeout();
        for _ in 0..8 {
            if self.ring.in_flight == 0 || self.ring.enter(1, None).is_err() {
                return;
            }
            self.reap();
        }
    }

    /// Reaps all CQEs of the completion queue into `completed`.
    fn reap(&mut self) {
        while self.violation.is_none()
            && let Some(cqe) = self.ring.next()
        {
            if let Some(completed) = self.translate(cqe.user_data(), cqe.result(), cqe.flags()) {
                self.completed.push_back(completed);
            }
        }
    }

    fn make_watch_fd(&mut self) -> io::Result<OwnedFd> {
        if !self.features.deferred {
            // The ring's own descriptor becomes readable with a CQE. An event fd would not work on
            // all kernels: before 5.19 a registration waits until no operation is in flight. A
            // TIMEOUT left from an earlier wait would make the descriptor readable without cause.
            self.ring.cancel_wait_timeout();
            // SAFETY: the ring is open as long as this value lives.
            return unsafe { BorrowedFd::borrow_raw(self.ring.uring.as_raw_fd()) }
                .try_clone_to_owned();
        }
        // With DEFER_TASKRUN the ring's descriptor does not wake an epoll_wait; a registered event
        // fd does.
        let event_fd = crate::sys::eventfd()?;
        self.ring.uring.submitter().register_eventfd(event_fd.as_raw_fd())?;
        let copy = event_fd.try_clone()?;
        self.event_fd = Some(event_fd);
        Ok(copy)
    }
}

impl Drop for Uring {
    /// Drops the batches that no SQE in flight reads. All others are leaked ([`InFlight`]).
    ///
    /// [`InFlight`]: crate::buf::InFlight
    fn drop(&mut self) {
        let is_unread = |slot: &&mut Slot| !matches!(slot.send, Kind::Send | Kind::SendZeroCopy);
        let unread = self.slots.iter_mut().filter(|_| self.violation.is_none()).filter(is_unread);
        let batches = unread.filter_map(|slot| slot.batch.take());
        // SAFETY: no SQE of these slots that reads a batch is in flight.
        let batches: Vec<SendBatch> = batches.map(|batch| unsafe { batch.take() }).collect();
        drop(batches);
    }
}

impl Backend for Uring {
    type Socket = OwnedFd;

    fn epoch(&self) -> Instant {
        self.epoch
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn open(&mut self, key: Key, what: Open<'_, OwnedFd>) -> Result<(), Error> {
        let listens = matches!(what, Open::Listen(..) | Open::Listener(_));
        let fd = match what {
            // Non-blocking only in tier `polled`: there an accept after a spurious poll must not
            // block a worker.
            Open::Listen(addr, options) => socket::listening(addr, options, self.features.polled)?,
            Open::Listener(fd) => {
                if self.features.polled {
                    let _ = socket2::SockRef::from(&fd).set_nonblocking(true);
                }
                fd
            }
            Open::Accepted(fd) | Open::Stream(fd) => fd,
        };
        self.open_slot(key, Some(fd));
        self.slot(key).set(flag::LISTENER, listens);
        Ok(())
    }

    #[inline(always)]
    fn start(&mut self, key: Key, operation: Operation) -> Started {
        match operation {
            Operation::Send(batch) => self.start_send(key, batch),
            Operation::Recv => self.start_recv(key),
            Operation::RecvInto(buf) => self.start_recv_into(key, buf),
            Operation::Connect(connect) => self.start_connect(key, connect),
            Operation::Accept => self.start_accept(key),
            Operation::WatchHangup => self.start_watch(key),
            Operation::Shutdown => self.start_shutdown(key),
            Operation::Close(mode) => self.start_close(key, mode),
        }
    }

    fn cancel(&mut self, key: Key, kind: OpKind) {
        self.cancel_op(key, kind);
    }

    fn wait(&mut self, until: Option<u64>) -> Result<(), Error> {
        if let Some(Violation(what)) = self.violation {
            return Err(Error::EngineFailed(what));
        }
        self.arm_wake();
        self.stage_postponed();
        self.retry_connects();
        self.buffers.refill();
        let mut until = until;
        if !self.unix_retries.is_empty() {
            let retry = self.now() + op::connect::UNIX_RETRY_NS;
            until = Some(until.map_or(retry, |until| until.min(retry)));
        }
        let timeout = match until {
            Some(0) => Some(Duration::ZERO),
            Some(until) => Some(Duration::from_nanos(until.saturating_sub(self.now()))),
            None => None,
        };
        let ready = timeout == Some(Duration::ZERO)
            || self.has_next()
            || !self.postponed.is_empty()
            || !self.wake_armed;
        self.ring.enter(u32::from(!ready), timeout).map_err(Ring::enter_error)
    }

    #[inline(always)]
    fn next(&mut self) -> Option<Completed<OwnedFd>> {
        loop {
            if self.violation.is_some() {
                return None;
            }
            if let Some(completed) = self.completed.pop_front() {
                return Some(completed);
            }
            let cqe = self.ring.next()?;
            if let Some(completed) = self.translate(cqe.user_data(), cqe.result(), cqe.flags()) {
                return Some(completed);
            }
        }
    }

    fn has_next(&self) -> bool {
        !self.completed.is_empty() || self.ring.has_next() || self.violation.is_some()
    }

    fn free_buffers(&self) -> usize {
        self.buffers.free()
    }

    fn addr(&self, key: Key, side: Side) -> io::Result<Addr> {
        super::addr_of(self.fd(key), side)
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.find_slot(key)?.fd.as_ref().map(AsFd::as_fd)
    }

    fn release(&mut self, key: Key) -> Result<OwnedFd, Error> {
        if !self.abandon_watch(key) {
            return Err(Error::State("the submission queue is full: poll, and try again"));
        }
        let slot = self.slot(key);
        let fd = slot.fd.take().ok_or(Error::State("the connection has no descriptor"))?;
        slot.generation = 0;
        Ok(fd)
    }

    fn completion_fd(&mut self) -> Result<OwnedFd, Error> {
        self.make_watch_fd().map_err(|error| Error::os("as_fd", &error))
    }

    fn reset_completion_fd(&mut self) {
        let Some(event_fd) = &self.event_fd else { return };
        if crate::sys::counter_reset(event_fd) {
            // The kernel may signal a registered event fd from an RCU callback, and may do so only
            // once per registration (seen on 6.12 and 6.18): register it anew. `has_next` finds
            // what completes in between.
            self.stats.syscalls += 3;
            let submitter = self.ring.uring.submitter();
            let _ = submitter.unregister_eventfd();
            let _ = submitter.register_eventfd(event_fd.as_raw_fd());
        }
    }

    fn stats(&self) -> Stats {
        let heap_copies = self.buffers.heap_copies();
        Stats { heap_copies, ..self.stats.plus(self.ring.stats) }
    }

    fn shut_down(&mut self, patience: Duration) -> bool {
        if self.violation.is_some() {
            return false;
        }
        if self.wake_armed && self.ring.make_room().is_ok() {
            self.ring.push_cancel(pack(Kind::Wake, Key::NONE));
        }
        while self.ring.operations_in_flight() > 0 {
            let before = self.ring.operations_in_flight();
            // A patience beyond the range of the clock sets no deadline.
            let deadline = Instant::now().checked_add(patience);
            let timeout = || deadline.map(|at| at.saturating_duration_since(Instant::now()));
            while self.ring.operations_in_flight() == before
                && self.violation.is_none()
                && timeout() != Some(Duration::ZERO)
            {
                // An interrupted wait (EINTR) returns no error and is repeated.
                if self.ring.enter(1, timeout()).is_err() {
                    break;
                }
                self.reap();
            }
            if self.ring.operations_in_flight() == before || self.violation.is_some() {
                break;
            }
        }
        self.end_wait_timeout();
        self.buffers.unregister(&self.ring.uring);
        self.ring.in_flight == 0 && self.violation.is_none()
    }
}
