//! The io_uring backend: operations are submission queue entries, what came of them are completion
//! queue entries, and one `io_uring_enter` a turn does it all.
//!
//! Owns: the ring, the sockets, the receive buffers, and the memory of each operation in flight.
//! Invariant: a slot knows which entry of each direction is in flight and holds what it reads or
//! writes, and its descriptor is closed by an entry of its own, when no other is. Must not know:
//! connection states, queues, timers.
//!
//! # The four ways to wait
//!
//! Where the kernel polls by itself (FAST_POLL, 5.7), an operation is one entry. Where buffers can
//! be picked by the kernel when data is there (a buffer ring, 5.19), a receive is one entry too,
//! and with multishot (6.0) one for many receives. Otherwise the socket is polled first and the
//! operation follows when it can go on: for receives in tier `oneshot` without a buffer ring, so
//! that no buffer is bound to an idle connection; for everything in tier `polled`, so that no
//! kernel worker is.
//!
//! # When the kernel cannot be believed
//!
//! What a completion says is checked before anything rests on it: that its operation is in flight,
//! that a buffer is the kernel's, that no more bytes were taken or written than there are. What
//! does not hold fails the backend: it hands out nothing more, and its memory is leaked when it is
//! dropped.
#![allow(unsafe_code)]

mod alarm;
mod arena;
mod buffers;
mod bufring;
mod entry;
#[cfg(test)]
mod lying_kernel;
mod op;
mod probe;
mod reap;
mod ring;
pub(super) mod setup;
mod slot;
mod sys;
mod token;

use super::{
    Backend, BackendStats, Completed, OpKind, Open, Operation, Outcome, SendBatch, Side, Started,
};
use crate::error::{Error, Violation};
use crate::id::{EngineNumber, Key};
use crate::net::{Addr, socket};
use crate::table::Table;
use crate::waker::Inbox;
use buffers::Buffers;
use entry::Plain;
use op::Step;
use op::connect::{Connects, UnixRetry};
use op::recv_into::RecvBufs;
use op::send::ZeroCopy;
pub(super) use probe::Refusal;
use ring::Ring;
use slot::{Slot, mark};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use token::{Kind, pack};

/// How operations are made into entries; follows from the tier and the capabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) multishot_recv: bool,
    /// The first receive of a connection is single-shot all the same, and waits for a first send.
    /// Only with multishot receives.
    pub(super) adaptive_receives: bool,
    pub(super) multishot_accept: bool,
    /// Sockets are made by an entry.
    pub(super) socket_op: bool,
    /// Everything is polled first, with descriptors and flags that never block.
    pub(super) polled: bool,
    /// Completions are made only when the owner enters the kernel.
    pub(super) deferred: bool,
    pub(super) zero_copy: bool,
}

#[derive(Debug)]
pub(crate) struct Uring {
    /// First, so that it is gone before the memory that its kernel side uses.
    ring: Ring,
    buffers: Buffers,
    style: Style,
    engine: EngineNumber,
    epoch: Instant,
    inbox: Arc<Inbox>,
    wake_armed: bool,
    gather_max: usize,
    slots: Vec<Slot>,
    recv_bufs: RecvBufs,
    connects: Connects,
    zero_copies: Table<ZeroCopy>,
    /// Bytes of payloads in `zero_copies`.
    zero_copy_bytes: usize,
    done: VecDeque<Completed<OwnedFd>>,
    steps: VecDeque<Step>,
    unix_retries: Vec<UnixRetry>,
    /// Watches for hang-ups whose connections were released: cancelled, and not yet completed.
    abandoned_watches: usize,
    watch: Option<OwnedFd>,
    stats: BackendStats,
    violation: Option<Violation>,
}

impl Uring {
    fn new(
        ring: Ring,
        buffers: Buffers,
        style: Style,
        inbox: Arc<Inbox>,
        parameters: &super::Parameters,
    ) -> Uring {
        Uring {
            ring,
            buffers,
            style,
            engine: parameters.engine,
            epoch: Instant::now(),
            inbox,
            wake_armed: false,
            gather_max: parameters.gather_max,
            slots: Vec::with_capacity(parameters.connections_reserved),
            recv_bufs: RecvBufs::default(),
            connects: Connects::default(),
            zero_copies: Table::new(parameters.engine, 0),
            zero_copy_bytes: 0,
            done: VecDeque::new(),
            steps: VecDeque::new(),
            unix_retries: Vec::new(),
            abandoned_watches: 0,
            watch: None,
            stats: BackendStats::default(),
            violation: None,
        }
    }

    /// # Panics
    /// If the key is not the slot's: the engine names only what it holds.
    #[inline]
    fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.slot()];
        assert_eq!(slot.generation, key.generation(), "the engine names only what it holds");
        slot
    }

    fn known(&self, key: Key) -> Option<&Slot> {
        self.slots.get(key.slot()).filter(|slot| slot.generation == key.generation())
    }

    fn occupy(&mut self, key: Key, fd: Option<OwnedFd>) {
        let index = key.slot();
        while self.slots.len() <= index {
            self.slots.push(Slot::new(None, 0));
        }
        self.slots[index] = Slot::new(fd, key.generation());
    }

    fn finish(&mut self, key: Key, outcome: Outcome<OwnedFd>) {
        self.done.push_back(Completed::last(key, outcome));
    }

    /// The kernel said something that cannot be true: nothing more is handed out.
    #[cold]
    fn fail(&mut self, violation: Violation) {
        if self.violation.is_none() {
            self.violation = Some(violation);
            self.buffers.distrust();
        }
        self.stats.kernel_violations += 1;
    }

    fn arm_wake(&mut self) {
        if self.wake_armed || self.ring.make_room().is_err() {
            return;
        }
        let entry = Plain::poll_of(self.inbox.fd(), libc::POLLIN);
        self.ring.push_plain(entry, pack(Kind::Wake, Key::NONE));
        self.wake_armed = true;
    }

    /// Ends the last operation of a ring that is otherwise at rest: the one that bounds waits. It
    /// ends at once when it is cancelled.
    fn silence_alarm(&mut self) {
        if self.ring.operations() > 0 {
            return;
        }
        self.ring.silence();
        for _ in 0..8 {
            if self.ring.in_flight == 0 || self.ring.enter(1, None).is_err() {
                return;
            }
            self.reap_last();
        }
    }

    /// Takes what has completed, for nobody.
    fn reap_last(&mut self) {
        while self.violation.is_none()
            && let Some(entry) = self.ring.next()
        {
            if let Some(completed) =
                self.translate(entry.user_data(), entry.result(), entry.flags())
            {
                self.done.push_back(completed);
            }
        }
    }

    fn make_watch_fd(&mut self) -> io::Result<OwnedFd> {
        if !self.style.deferred {
            // The ring's own descriptor will do; and before 5.19 registering anything waits for all
            // operations in flight, which is for ever. What bounded an earlier wait would make it
            // readable for nothing.
            self.ring.silence();
            // SAFETY: the ring is open as long as this value lives.
            return unsafe { BorrowedFd::borrow_raw(self.ring.uring.as_raw_fd()) }
                .try_clone_to_owned();
        }
        // With DEFER_TASKRUN that does not wake a foreign epoll; a registered eventfd does.
        let event = crate::sys::eventfd()?;
        self.ring.uring.submitter().register_eventfd(event.as_raw_fd())?;
        let copy = event.try_clone()?;
        self.watch = Some(event);
        Ok(copy)
    }
}

impl Drop for Uring {
    /// Batches that the kernel does not know of are dropped. All others are leaked by their type.
    fn drop(&mut self) {
        let idle = |slot: &&mut Slot| !matches!(slot.send, Kind::Send | Kind::SendZeroCopy);
        let unknown = self.slots.iter_mut().filter(|_| self.violation.is_none()).filter(idle);
        let batches = unknown.filter_map(|slot| slot.batch.take());
        // SAFETY: no submission of these slots that reads a batch is in flight.
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
            // Non-blocking only where accepts are made when a poll said so: a spurious one must not
            // block a worker.
            Open::Listen(addr, options) => socket::listening(addr, options, self.style.polled)?,
            Open::Listener(fd) => {
                if self.style.polled {
                    let _ = socket2::SockRef::from(&fd).set_nonblocking(true);
                }
                fd
            }
            Open::Accepted(fd) | Open::Stream(fd) => fd,
        };
        self.occupy(key, Some(fd));
        self.slot(key).set(mark::LISTENS, listens);
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
        self.take_steps();
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
            || !self.steps.is_empty()
            || !self.wake_armed;
        self.ring.enter(u32::from(!ready), timeout).map_err(Ring::fatal)
    }

    #[inline(always)]
    fn next(&mut self) -> Option<Completed<OwnedFd>> {
        loop {
            if self.violation.is_some() {
                return None;
            }
            if let Some(done) = self.done.pop_front() {
                return Some(done);
            }
            let entry = self.ring.next()?;
            if let Some(completed) =
                self.translate(entry.user_data(), entry.result(), entry.flags())
            {
                return Some(completed);
            }
        }
    }

    fn has_next(&self) -> bool {
        !self.done.is_empty() || self.ring.has_next() || self.violation.is_some()
    }

    fn free_buffers(&self) -> usize {
        self.buffers.free()
    }

    fn addr(&self, key: Key, side: Side) -> io::Result<Addr> {
        super::addr_of(self.fd(key), side)
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.known(key)?.fd.as_ref().map(AsFd::as_fd)
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

    fn watch_fd(&mut self) -> Result<OwnedFd, Error> {
        self.make_watch_fd().map_err(|error| Error::os("as_fd", &error))
    }

    fn watch_reset(&mut self) {
        let Some(watch) = &self.watch else { return };
        if crate::sys::counter_reset(watch) {
            // The kernel may signal a registered eventfd by way of an RCU callback, and does that
            // once per registration (seen on 6.12 and 6.18): renew it. What happens in between is
            // seen by `has_next`.
            self.stats.syscalls += 3;
            let submitter = self.ring.uring.submitter();
            let _ = submitter.unregister_eventfd();
            let _ = submitter.register_eventfd(watch.as_raw_fd());
        }
    }

    fn stats(&self) -> BackendStats {
        let ring = self.ring.stats;
        BackendStats {
            heap_copies: self.buffers.heap_copies(),
            syscalls: ring.syscalls + self.stats.syscalls,
            sqes: ring.sqes,
            cqes: ring.cqes,
            queue_overflows: ring.queue_overflows,
            ..self.stats
        }
    }

    fn shut_down(&mut self, patience: Duration) -> bool {
        if self.violation.is_some() {
            return false;
        }
        if self.wake_armed && self.ring.make_room().is_ok() {
            self.ring.push_cancel(pack(Kind::Wake, Key::NONE));
        }
        while self.ring.operations() > 0 {
            let before = self.ring.operations();
            // A patience beyond what a clock can tell has no end.
            let until = Instant::now().checked_add(patience);
            let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
            while self.ring.operations() == before
                && self.violation.is_none()
                && left() != Some(Duration::ZERO)
            {
                // An interrupted wait is no reason to give up.
                if self.ring.enter(1, left()).is_err() {
                    break;
                }
                self.reap_last();
            }
            if self.ring.operations() == before || self.violation.is_some() {
                break;
            }
        }
        self.silence_alarm();
        self.buffers.unregister(&self.ring.uring);
        self.ring.in_flight == 0 && self.violation.is_none()
    }
}
