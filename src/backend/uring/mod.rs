//! The io_uring backend: operations are submission queue entries, what came of them are completion queue entries, and one
//! `io_uring_enter` a turn does it all.
//!
//! Owns: the ring, the sockets, the receive pool and its provided-buffer ring. Invariant: a slot knows which entry of each
//! direction is in flight, and its descriptor is closed by an entry of its own, when no other is. Must not know: connection
//! states, queues, timers.
//!
//! What the kernel says and memory safety rests on is checked. After the first [`Violation`]
//! nothing is handed out any more.
//!
//! # The four ways to wait
//!
//! Where the kernel polls by itself (FAST_POLL, 5.7), an operation is one entry. Where buffers can be picked by the kernel when data
//! is there (a buffer ring, 5.19), a receive is one entry too, and with multishot (6.0) one for many receives. Otherwise the
//! socket is polled first and the operation follows when it can go on: for receives in tier `oneshot` without a buffer ring,
//! so that no buffer is bound to an idle connection; for everything in tier `polled`, so that no kernel worker is.
#![allow(unsafe_code)]

mod alarm;
mod arena;
mod bufring;
#[cfg(test)]
mod lying;
mod ops;
mod reap;
mod ring;
pub(super) mod setup;
mod slot;
mod survey;
mod sys;
mod token;

use super::windows::Windows;
use super::{Backend, BackendStats, CloseHow, ConnectRequest, Done, Next, Op, Outcome, QueueFull, Tuning};
use crate::buf::{Fill, Lease, Pool, SendQueue};
use crate::error::{Errno, Error, Violation};
use crate::id::Key;
use crate::net::{Addr, socket};
use crate::options::ListenOptions;
use crate::waker::Inbox;
use bufring::BufRing;
use io_uring::{opcode, types};
use ring::Ring;
use slot::{Slot, mark};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
pub(super) use survey::Refusal;
use token::{Kind, pack};

/// How long a connect to a unix socket with a full backlog waits before it tries again.
const UNIX_RETRY_NS: u64 = 2_000_000;

/// How operations are made into entries; follows from the tier and the capabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) multishot_recv: bool,
    /// The first receive of a connection is single-shot all the same, and waits for a first send. Only with multishot receives.
    pub(super) adaptive_receives: bool,
    pub(super) multishot_accept: bool,
    pub(super) buf_ring: bool,
    /// Sockets are made by an entry.
    pub(super) socket_op: bool,
    /// Everything is polled first, with descriptors and flags that never block.
    pub(super) polled: bool,
    /// Completions are made only when the owner enters the kernel.
    pub(super) deferred: bool,
    pub(super) zero_copy: bool,
}

/// The second step of an operation that found the submission queue full.
#[derive(Clone, Copy, Debug)]
struct Step {
    key: Key,
    kind: Kind,
}

/// What is to be done with a socket that is being made.
#[derive(Debug)]
struct Opening {
    key: Key,
    request: ConnectRequest,
    /// The first send, linked to the connect: bytes that stay in place until it is told (contract, rule 3).
    first: Option<(*const u8, u32)>,
}

#[derive(Debug)]
pub(crate) struct Uring {
    /// First, so that it is gone before the memory that its kernel side uses.
    ring: Ring,
    buf_ring: Option<BufRing>,
    /// The buffers of single-shot receives, where those of `buf_ring` are piecewise.
    single_shot_ring: Option<BufRing>,
    pool: Pool,
    style: Style,
    epoch: Instant,
    inbox: Arc<Inbox>,
    wake_armed: bool,
    gather_max: usize,
    conns: Vec<Slot>,
    listeners: Vec<Slot>,
    windows: Windows,
    done: VecDeque<Done<OwnedFd>>,
    steps: VecDeque<Step>,
    unix_retries: Vec<(Key, socket2::SockAddr)>,
    /// Connects whose socket is being made, in the order of their entries.
    opening: VecDeque<Opening>,
    watch: Option<OwnedFd>,
    unknown: u64,
    /// The first thing that the kernel said and that cannot be.
    violation: Option<Violation>,
    syscalls: u64,
}

impl Uring {
    fn new(
        ring: Ring,
        buf_ring: Option<BufRing>,
        single_shot_ring: Option<BufRing>,
        pool: Pool,
        style: Style,
        inbox: Arc<Inbox>,
        tuning: &Tuning,
    ) -> Uring {
        Uring {
            ring,
            buf_ring,
            single_shot_ring,
            pool,
            style,
            epoch: Instant::now(),
            inbox,
            wake_armed: false,
            gather_max: tuning.gather_max,
            conns: Vec::with_capacity(tuning.connections_reserved),
            listeners: Vec::new(),
            windows: Windows::default(),
            done: VecDeque::new(),
            steps: VecDeque::new(),
            unix_retries: Vec::new(),
            opening: VecDeque::new(),
            watch: None,
            unknown: 0,
            violation: None,
            syscalls: 0,
        }
    }

    fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.conns[key.slot as usize];
        assert_eq!(slot.generation, key.generation.get(), "the engine names only what it holds");
        slot
    }

    fn listener(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.listeners[key.slot as usize];
        assert_eq!(slot.generation, key.generation.get(), "the engine names only what it holds");
        slot
    }

    fn occupy(slots: &mut Vec<Slot>, key: Key, fd: Option<OwnedFd>) {
        let index = key.slot as usize;
        while slots.len() <= index {
            slots.push(Slot::new(None, 0));
        }
        slots[index] = Slot::new(fd, key.generation.get());
    }

    fn knows(slots: &[Slot], key: Key) -> bool {
        slots.get(key.slot as usize).is_some_and(|slot| slot.generation == key.generation.get())
    }

    fn finish(&mut self, key: Key, op: Op, outcome: Outcome<OwnedFd>) {
        self.done.push_back(Done { key, op, more: false, outcome });
    }

    fn arm_wake(&mut self) {
        if self.wake_armed || self.ring.make_room().is_err() {
            return;
        }
        let fd = types::Fd(self.inbox.fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(pack(Kind::Wake, Key::NONE));
        // SAFETY: names no memory.
        unsafe { self.ring.push(entry) };
        self.wake_armed = true;
    }

    /// Ends the last operation of a ring that is otherwise at rest: the one that bounds waits. It ends at once when it is told.
    fn silence_alarm(&mut self) {
        if self.ring.operations() > 0 {
            return;
        }
        self.ring.silence();
        for _ in 0..8 {
            if self.ring.in_flight == 0 || self.ring.enter(1, None).is_err() {
                return;
            }
            while let Next::Data | Next::Done(_) = self.next(|_, _, _| {}) {}
        }
    }

    /// Leaks all memory that the kernel was given to write to.
    fn leak(&mut self) {
        self.pool.leak();
        self.buf_ring.take().into_iter().chain(self.single_shot_ring.take()).for_each(BufRing::leak);
    }

    /// Hands a descriptor to the kernel to close, when no operation is in flight on it.
    fn close_fd(&mut self, fd: OwnedFd, kind: Kind, key: Key) {
        let entry = opcode::Close::new(types::Fd(fd.into_raw_fd())).build().user_data(pack(kind, key));
        // SAFETY: names no memory. The caller made room.
        unsafe { self.ring.push(entry) };
        let slot = if kind == Kind::CloseListener { self.listener(key) } else { self.slot(key) };
        slot.open = kind;
    }

    fn make_watch_fd(&mut self) -> io::Result<OwnedFd> {
        if !self.style.deferred {
            // The ring's own descriptor will do; and before 5.19 registering anything waits for all operations in flight, which
            // is for ever. What bounded an earlier wait would make it readable for nothing.
            self.ring.silence();
            // SAFETY: the ring is open as long as this value lives.
            return unsafe { BorrowedFd::borrow_raw(self.ring.uring.as_raw_fd()) }.try_clone_to_owned();
        }
        // With DEFER_TASKRUN that does not wake a foreign epoll; a registered eventfd does.
        let event = crate::sys::eventfd()?;
        self.ring.uring.submitter().register_eventfd(event.as_raw_fd())?;
        let copy = event.try_clone()?;
        self.watch = Some(event);
        Ok(copy)
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

    fn listen(&mut self, key: Key, addr: &Addr, options: &ListenOptions) -> Result<(), Error> {
        // Non-blocking only where accepts are made when a poll said so: a spurious one must not block a worker.
        let fd = socket::listening(addr, options, self.style.polled)?;
        Self::occupy(&mut self.listeners, key, Some(fd));
        Ok(())
    }

    fn attach(&mut self, key: Key, socket: OwnedFd) -> Result<(), Errno> {
        Self::occupy(&mut self.conns, key, Some(socket));
        Ok(())
    }

    fn attach_listener(&mut self, key: Key, fd: OwnedFd) -> Result<(), Error> {
        if self.style.polled {
            let _ = socket2::SockRef::from(&fd).set_nonblocking(true);
        }
        Self::occupy(&mut self.listeners, key, Some(fd));
        Ok(())
    }

    fn adopt(&mut self, fd: OwnedFd) -> Result<OwnedFd, Error> {
        Ok(fd)
    }

    fn release(&mut self, key: Key) -> Result<OwnedFd, Error> {
        let slot = self.slot(key);
        slot.generation = 0;
        slot.fd.take().ok_or(Error::State("the connection has no descriptor"))
    }

    fn start_connect(
        &mut self,
        key: Key,
        request: &ConnectRequest,
        first: Option<&mut SendQueue>,
    ) -> Result<bool, QueueFull> {
        self.connect(key, request, first)
    }

    fn start_accept(&mut self, listener: Key) -> Result<(), QueueFull> {
        self.ring.make_room()?;
        let kind = if self.style.polled { Kind::AcceptPoll } else { Kind::Accept };
        self.listener(listener).stop = 0;
        self.push_accept(listener, kind);
        Ok(())
    }

    fn start_recv(&mut self, key: Key) -> Result<(), QueueFull> {
        self.ring.make_room()?;
        let adaptive = self.style.adaptive_receives;
        let slot = self.slot(key);
        slot.stop &= !(1 << Op::Recv as u8);
        // An answer needs a request: until that has left, a receive would only find nothing, and be polled for.
        let held = adaptive && slot.has(mark::UNUSED) && slot.send != Kind::Idle;
        slot.set(mark::HELD, held);
        self.ring.stats.late_receives += u64::from(held);
        if !held {
            let poll_first = !self.slot(key).has(mark::HOT) && !self.style.buf_ring;
            self.push_recv(key, if poll_first { Kind::RecvPoll } else { Kind::Recv });
        }
        Ok(())
    }

    fn start_recv_into(&mut self, key: Key, fill: &mut Fill) -> Result<(), QueueFull> {
        self.ring.make_room()?;
        self.slot(key).stop &= !(1 << Op::Recv as u8);
        self.windows.set(key, fill.window());
        self.push_fill(key, if self.style.polled { Kind::FillPoll } else { Kind::Fill });
        Ok(())
    }

    fn start_send(&mut self, key: Key, queue: &mut SendQueue, zero_copy: bool) -> Result<Option<usize>, QueueFull> {
        self.send(key, queue, zero_copy)?;
        Ok(None)
    }

    fn can_zero_copy(&self) -> bool {
        self.style.zero_copy
    }

    fn cancel(&mut self, key: Key, op: Op) -> Result<(), QueueFull> {
        self.cancel_op(key, op)
    }

    fn shutdown_write(&mut self, key: Key) {
        // shutdown(2) and not its opcode, which always goes to a kernel worker.
        self.syscalls += 1;
        if let Some(fd) = &self.slot(key).fd {
            socket::shutdown_write(fd);
        }
    }

    fn start_close(&mut self, key: Key, how: CloseHow) -> Result<(), QueueFull> {
        self.ring.make_room()?;
        let fd = if Self::knows(&self.conns, key) { self.slot(key).fd.take() } else { None };
        let Some(fd) = fd else {
            self.finish(key, Op::Close, Outcome::Count(0));
            return Ok(());
        };
        if how == CloseHow::Reset {
            self.syscalls += 1;
            socket::reset_on_close(&fd);
        }
        self.close_fd(fd, Kind::Close, key);
        Ok(())
    }

    fn start_close_listener(&mut self, listener: Key) -> Result<(), QueueFull> {
        self.ring.make_room()?;
        match self.listener(listener).fd.take() {
            Some(fd) => self.close_fd(fd, Kind::CloseListener, listener),
            None => self.finish(listener, Op::CloseListener, Outcome::Count(0)),
        }
        Ok(())
    }

    fn wait(&mut self, until: Option<u64>) -> Result<(), Error> {
        self.arm_wake();
        self.take_steps();
        self.retry_connects();
        self.buf_ring.iter_mut().chain(&mut self.single_shot_ring).for_each(BufRing::refill);
        let mut until = until;
        if !self.unix_retries.is_empty() {
            let retry = self.now() + UNIX_RETRY_NS;
            until = Some(until.map_or(retry, |until| until.min(retry)));
        }
        let timeout = match until {
            Some(0) => Some(Duration::ZERO),
            Some(until) => Some(Duration::from_nanos(until.saturating_sub(self.now()))),
            None => None,
        };
        let ready = timeout == Some(Duration::ZERO) || self.has_next() || !self.steps.is_empty() || !self.wake_armed;
        self.ring.enter(u32::from(!ready), timeout).map_err(Ring::fatal)
    }

    #[inline(always)]
    fn next(&mut self, mut data: impl FnMut(Key, bool, Lease)) -> Next<OwnedFd> {
        if self.violation.is_some() {
            return Next::Nothing;
        }
        loop {
            if let Some(done) = self.done.pop_front() {
                return Next::Done(done);
            }
            let Some(entry) = self.ring.next() else { return Next::Nothing };
            match self.translate(entry.user_data(), entry.result(), entry.flags(), &mut data) {
                Ok(Some(next)) => return next,
                Ok(None) => {}
                Err(violation) => {
                    self.distrust(violation);
                    return Next::Nothing;
                }
            }
        }
    }

    fn has_next(&self) -> bool {
        self.violation.is_none() && (!self.done.is_empty() || self.ring.has_next())
    }

    fn violation(&self) -> Option<Violation> {
        self.violation
    }

    fn distrust(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    fn free_buffers(&self) -> usize {
        // In the ring or about to be put there: the kernel decides who gets them.
        self.pool.free() + self.buf_ring.as_ref().map_or(0, BufRing::usable)
    }

    fn peer_addr(&self, key: Key) -> io::Result<Addr> {
        socket::peer_addr(self.fd(key).ok_or(io::ErrorKind::NotConnected)?)
    }

    fn local_addr(&self, key: Key) -> io::Result<Addr> {
        socket::local_addr(self.fd(key).ok_or(io::ErrorKind::NotConnected)?)
    }

    fn listener_addr(&self, listener: Key) -> io::Result<Addr> {
        socket::local_addr(self.listeners[listener.slot as usize].fd.as_ref().ok_or(io::ErrorKind::NotConnected)?)
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        let slot = self.conns.get(key.slot as usize).filter(|slot| slot.generation == key.generation.get())?;
        slot.fd.as_ref().map(AsFd::as_fd)
    }

    fn watch_fd(&mut self) -> Result<OwnedFd, Error> {
        self.make_watch_fd().map_err(|error| Error::os("as_fd", &error))
    }

    fn watch_reset(&mut self) {
        let Some(watch) = &self.watch else { return };
        if crate::sys::counter_reset(watch) {
            // The kernel may signal a registered eventfd by way of an RCU callback, and does that once per registration (seen
            // on 6.12 and 6.18): renew it. What happens in between is seen by `has_next`.
            self.syscalls += 3;
            let submitter = self.ring.uring.submitter();
            let _ = submitter.unregister_eventfd();
            let _ = submitter.register_eventfd(watch.as_raw_fd());
        }
    }

    fn stats(&self) -> BackendStats {
        let ring = self.ring.stats;
        BackendStats {
            heap_copies: self.pool.heap_copies()
                + self.single_shot_ring.as_ref().map_or(0, |ring| ring.pool().heap_copies()),
            unknown_completions: self.unknown,
            syscalls: ring.syscalls + self.syscalls,
            ..ring
        }
    }

    fn shut_down(&mut self, patience: Duration) -> bool {
        if self.violation.is_none() && self.wake_armed && self.ring.make_room().is_ok() {
            self.ring.push_cancel(pack(Kind::Wake, Key::NONE));
        }
        while self.violation.is_none() && self.ring.operations() > 0 {
            let before = self.ring.operations();
            // No deadline, where none can be told: `patience` may be anything.
            let until = Instant::now().checked_add(patience);
            let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
            while self.violation.is_none() && self.ring.operations() == before && left() != Some(Duration::ZERO) {
                // An interrupted wait is no reason to give up.
                if self.ring.enter(1, left()).is_err() {
                    break;
                }
                while let Next::Data | Next::Done(_) = self.next(|_, _, _| {}) {}
            }
            if self.ring.operations() == before {
                break;
            }
        }
        if self.violation.is_some() {
            // A FIN would make a stream that is cut short look complete.
            self.conns.iter().filter_map(|slot| slot.fd.as_ref()).for_each(socket::reset_on_close);
            self.leak();
            return false;
        }
        self.silence_alarm();
        let clean = self.ring.in_flight == 0 && self.violation.is_none();
        match clean {
            true => {
                let rings = self.buf_ring.take().into_iter().chain(self.single_shot_ring.take());
                rings.for_each(|ring| ring.unregister(&self.ring.uring));
            }
            false => self.leak(),
        }
        clean
    }
}
