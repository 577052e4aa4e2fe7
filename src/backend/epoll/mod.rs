//! The epoll backend: an operation is tried with a non-blocking system call, and waits for
//! readiness if that returns EAGAIN.
//!
//! Owns: the epoll instance, the sockets, and the memory of operations that wait. Invariant: the
//! kernel holds no memory between two calls, so the backend can be dropped at any time. Must not
//! know: connection states, send queues, timers.
//!
//! Each descriptor is registered once, edge-triggered, so that a steady connection needs no
//! epoll_ctl(2). It is registered for input first, and for output too after the first send that was
//! cut short: on a unix socket each read of the peer is an edge for output, which would cost one
//! wake-up a request.
//!
//! An operation is one file in `op/` and one bit of [`Slot::state`]. `work.rs` waits and runs the
//! work list.

mod op;
mod work;

use super::{
    Backend, Completed, OpKind, Open, Operation, Outcome, Parameters, SendBatch, Side, Started,
};
use crate::buf::Pool;
use crate::error::{Errno, Error, Violation};
use crate::id::Key;
use crate::net::{Addr, socket};
use crate::stats::Stats;
use crate::sys::Epoll;
use crate::waker::WakerShared;
use op::{ConnectRetry, RecvBufs};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The token of the waker: the bits of [`Key::NONE`]. Other tokens are the bits of a slot's key.
const WAKE_TOKEN: u64 = u64::MAX;
/// The events of each descriptor; [`INPUT_OUTPUT`] after the first partial send.
const INPUT: libc::c_int = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
const INPUT_OUTPUT: libc::c_int = INPUT | libc::EPOLLOUT;
const EVENTS_PER_WAIT: usize = 512;

/// Bits of [`Slot::state`]: readiness, armed operations, and whether the slot is on the work list.
mod bit {
    pub(super) const READABLE: u16 = 1;
    pub(super) const WRITABLE: u16 = 1 << 1;
    /// EPOLLRDHUP, EPOLLHUP or EPOLLERR was reported. A short read then does not mean that the
    /// socket is empty: reads continue until EAGAIN or the end of the stream.
    pub(super) const HUNG_UP: u16 = 1 << 2;
    pub(super) const CONNECT: u16 = 1 << 3;
    pub(super) const RECV: u16 = 1 << 4;
    pub(super) const RECV_INTO: u16 = 1 << 5;
    /// The batch in [`super::Slot::send`] waits for writability.
    pub(super) const SEND: u16 = 1 << 6;
    pub(super) const ACCEPT: u16 = 1 << 7;
    pub(super) const IN_WORK_LIST: u16 = 1 << 8;
    /// A connect to a unix socket found the backlog full, and is retried.
    pub(super) const RETRY: u16 = 1 << 9;
    /// A send was cut short: the next one waits for the edge of EPOLLOUT.
    pub(super) const BLOCKED: u16 = 1 << 10;
    /// Registered for EPOLLOUT too.
    pub(super) const OUTPUT_REGISTERED: u16 = 1 << 11;
    /// A `WatchHangup` waits for [`HUNG_UP`].
    pub(super) const WATCH_HANGUP: u16 = 1 << 12;
    /// Armed operations that wait for readiness.
    pub(super) const OPERATIONS: u16 = CONNECT | RECV | RECV_INTO | SEND | ACCEPT;
}

/// One connection or listener.
#[derive(Debug, Default)]
struct Slot {
    fd: Option<OwnedFd>,
    /// The generation of the key; 0 if the slot is free.
    generation: u32,
    state: u16,
    /// Operations performed in turn `turn`, limited by the budget.
    spent: u16,
    turn: u32,
    /// Waits for writability ([`bit::SEND`]), or for the end of a pending connect.
    send: Option<SendBatch>,
}

#[derive(Debug)]
pub(crate) struct EpollBackend {
    epoll: Epoll,
    epoch: Instant,
    waker_shared: Arc<WakerShared>,
    pool: Pool,
    /// The pool buffer that the next receive continues to fill.
    open_buffer: Option<u16>,
    parameters: Parameters,
    precise_wait: bool,
    slots: Vec<Slot>,
    recv_bufs: RecvBufs,
    /// Completions that [`Backend::next`] has not returned yet.
    done: VecDeque<Completed<OwnedFd>>,
    /// The work list: slots with an armed operation in a ready direction. Keys that were closed
    /// since are skipped.
    work: VecDeque<Key>,
    /// Slots that have used up their budget of this turn.
    spent: VecDeque<Key>,
    retries: Vec<ConnectRetry>,
    events: Box<[libc::epoll_event]>,
    turn: u32,
    /// Turns since the last epoll_wait(2).
    turns_since_wait: u32,
    /// The kernel returned an invalid value: nothing more completes.
    failed: Option<Violation>,
    stats: Stats,
}

impl EpollBackend {
    pub(crate) fn new(
        parameters: Parameters,
        waker_shared: Arc<WakerShared>,
        precise_wait: bool,
    ) -> Result<EpollBackend, Error> {
        let epoll = Epoll::new().map_err(|error| Error::os("epoll_create1", &error))?;
        epoll
            .add(waker_shared.fd(), libc::EPOLLIN, WAKE_TOKEN)
            .map_err(|error| Error::os("epoll_ctl", &error))?;
        let (count, size) = parameters.buffers;
        let pool = Pool::new(count, size, parameters.low_watermark)
            .map_err(|error| Error::os("mmap", &error))?;
        Ok(EpollBackend {
            epoll,
            epoch: Instant::now(),
            waker_shared,
            pool,
            open_buffer: None,
            slots: Vec::with_capacity(parameters.connections_reserved),
            parameters,
            precise_wait,
            recv_bufs: RecvBufs::default(),
            done: VecDeque::new(),
            work: VecDeque::new(),
            spent: VecDeque::new(),
            retries: Vec::new(),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_WAIT].into(),
            turn: 0,
            turns_since_wait: 0,
            failed: None,
            stats: Stats::default(),
        })
    }

    /// Whether epoll_pwait2(2) exists (Linux 5.11) and no filter forbids it.
    pub(crate) fn try_precise_wait() -> Result<(), Errno> {
        let epoll = Epoll::new().map_err(|error| Errno::of(&error))?;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }];
        epoll.wait_precise(&mut events, Some(Duration::ZERO)).map(drop)
    }

    /// The slot of an open key.
    #[inline(always)]
    fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.slot()];
        assert_eq!(
            slot.generation,
            key.generation(),
            "the engine uses a key that it did not open, or closed"
        );
        slot
    }

    /// The slot of a key that may have been closed.
    #[inline(always)]
    fn find(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.get_mut(key.slot()).filter(|slot| slot.generation == key.generation())
    }

    fn occupy(&mut self, key: Key, fd: Option<OwnedFd>) {
        let index = key.slot();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        let slot = &mut self.slots[index];
        assert_eq!(slot.generation, 0, "the last key of the slot was not closed");
        *slot = Slot { fd, generation: key.generation(), ..Slot::default() };
    }

    /// Frees the slot of a key, and returns its descriptor.
    ///
    /// # Panics
    /// If an operation is in flight.
    fn vacate(&mut self, key: Key) -> Option<OwnedFd> {
        let slot = self.slot(key);
        let in_flight = slot.state & (bit::OPERATIONS | bit::RETRY) != 0 || slot.send.is_some();
        assert!(!in_flight, "an operation is in flight at the end of its key");
        std::mem::take(slot).fd
    }

    /// Adds the descriptor of a slot to the epoll instance.
    fn register(&mut self, key: Key, events: libc::c_int) -> Result<(), Errno> {
        self.stats.syscalls += 1;
        let slot = &mut self.slots[key.slot()];
        if events & libc::EPOLLOUT != 0 {
            slot.state |= bit::OUTPUT_REGISTERED;
        }
        let fd = slot.fd.as_ref().expect("a slot is registered after it has a descriptor").as_fd();
        self.epoll.add(fd, events, key.bits()).map_err(|error| Errno::of(&error))
    }

    /// Registers for output too. If the socket is writable, epoll_ctl(2) makes an edge at once.
    fn register_output(&mut self, key: Key) -> Result<(), Errno> {
        let slot = self.slot(key);
        if slot.state & bit::OUTPUT_REGISTERED != 0 {
            return Ok(());
        }
        slot.state |= bit::OUTPUT_REGISTERED;
        self.stats.syscalls += 1;
        let fd = self.slots[key.slot()].fd.as_ref().expect("a send has a socket").as_fd();
        self.epoll.modify(fd, INPUT_OUTPUT, key.bits()).map_err(|error| Errno::of(&error))
    }

    /// Queues a final completion for [`Backend::next`].
    fn complete(&mut self, key: Key, outcome: Outcome<OwnedFd>) {
        self.done.push_back(Completed::last(key, outcome));
    }
}

impl Slot {
    #[inline]
    fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    #[inline]
    fn can_progress(&self) -> bool {
        let input = bit::RECV | bit::RECV_INTO | bit::ACCEPT;
        let output = bit::SEND | bit::CONNECT;
        self.state & bit::READABLE != 0 && self.state & input != 0
            || self.state & bit::WRITABLE != 0 && self.state & output != 0
    }
}

impl Backend for EpollBackend {
    type Socket = OwnedFd;
    const RECEIVES_IN_NEXT: bool = true;
    const EARLY_PAYLOADS_MAX: usize = usize::MAX;

    fn epoch(&self) -> Instant {
        self.epoch
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn open(&mut self, key: Key, what: Open<'_, OwnedFd>) -> Result<(), Error> {
        let fd = match what {
            Open::Listen(addr, options) => socket::listening(addr, options, true)?,
            Open::Accepted(fd) | Open::Stream(fd) | Open::Listener(fd) => fd,
        };
        self.stats.syscalls += 1;
        self.epoll
            .add(fd.as_fd(), INPUT, key.bits())
            .map_err(|error| Error::os("epoll_ctl", &error))?;
        self.occupy(key, Some(fd));
        Ok(())
    }

    #[inline(always)]
    fn start(&mut self, key: Key, operation: Operation) -> Started {
        match operation {
            Operation::Send(batch) => self.start_send(key, batch),
            Operation::Recv => self.start_recv(key),
            Operation::RecvInto(recv_buf) => self.start_recv_into(key, recv_buf),
            Operation::Connect(connect) => self.start_connect(key, connect),
            Operation::Accept => self.start_accept(key),
            Operation::WatchHangup => self.start_hangup(key),
            Operation::Shutdown => self.shutdown_write(key),
            Operation::Close(mode) => self.close(key, mode),
        }
    }

    fn cancel(&mut self, key: Key, kind: OpKind) {
        self.cancel_operation(key, kind);
    }

    fn wait(&mut self, until: Option<u64>) -> Result<(), Error> {
        self.wait_for_events(until)
    }

    #[inline(always)]
    fn next(&mut self) -> Option<Completed<OwnedFd>> {
        self.next_completed()
    }

    fn has_next(&self) -> bool {
        !self.done.is_empty() || !self.work.is_empty() || !self.spent.is_empty()
    }

    fn free_buffers(&self) -> usize {
        self.pool.free() + usize::from(self.open_buffer.is_some())
    }

    fn addr(&self, key: Key, side: Side) -> io::Result<Addr> {
        super::addr_of(self.fd(key), side)
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        let slot = self.slots.get(key.slot())?;
        let fd = slot.fd.as_ref().filter(|_| slot.generation == key.generation())?;
        Some(fd.as_fd())
    }

    fn release(&mut self, key: Key) -> Result<OwnedFd, Error> {
        let fd = self.fd(key).ok_or(Error::State("the connection has no descriptor"))?;
        self.epoll.remove(fd).map_err(|error| Error::os("epoll_ctl", &error))?;
        Ok(self.vacate(key).expect("checked above"))
    }

    fn completion_fd(&mut self) -> Result<OwnedFd, Error> {
        self.epoll.fd().try_clone().map_err(|error| Error::os("as_fd", &error))
    }

    fn reset_completion_fd(&mut self) {
        // An epoll instance becomes unreadable when its events are taken.
    }

    fn stats(&self) -> Stats {
        Stats { heap_copies: self.pool.heap_copies(), ..self.stats }
    }

    fn shut_down(&mut self, _patience: Duration) -> bool {
        // The kernel holds no memory between calls.
        true
    }
}

#[cfg(test)]
mod tests;
