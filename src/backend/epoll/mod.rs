//! The epoll backend: operations are tried at once, and wait for readiness only if they must.
//!
//! Owns: the epoll instance, the sockets, and what operations hold while they wait. Each
//! descriptor is registered once, edge-triggered, so no epoll_ctl happens in steady state: for
//! input at first, and for output too from the moment that a send finds its peer slow. (On a unix
//! socket each read of the peer is an edge for whoever watches output: one wake-up a request, for
//! nothing.) Invariant: nothing is in the kernel's hands between two calls, so what this backend
//! holds can be dropped at any time. Must not know: connection states, send queues, timers.
//!
//! An operation is one file in `op/` and one bit of [`Slot::state`]; `work.rs` is the turn.

mod op;
mod work;

use super::{
    Backend, BackendStats, Completed, OpKind, Open, Operation, Outcome, Parameters, SendBatch,
    Side, Started,
};
use crate::buf::Pool;
use crate::error::{Errno, Error, Violation};
use crate::id::Key;
use crate::net::{Addr, socket};
use crate::sys::Epoll;
use crate::waker::Inbox;
use op::{RecvBufs, Retry};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The token of the waker: the bits of [`Key::NONE`]. Other tokens are the bits of a slot's key.
const WAKE_TOKEN: u64 = u64::MAX;
const INPUT: libc::c_int = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
const BOTH: libc::c_int = INPUT | libc::EPOLLOUT;
const EVENTS_PER_WAIT: usize = 512;

/// Bits of [`Slot::state`]: readiness, armed operations, and whether the slot is on the work list.
mod bit {
    pub(super) const READABLE: u16 = 1;
    pub(super) const WRITABLE: u16 = 1 << 1;
    /// RDHUP, HUP or ERR was seen: a short read proves nothing; read until EAGAIN or the end.
    pub(super) const HUNG_UP: u16 = 1 << 2;
    pub(super) const CONNECT: u16 = 1 << 3;
    pub(super) const RECV: u16 = 1 << 4;
    pub(super) const RECV_INTO: u16 = 1 << 5;
    /// The batch in [`super::Slot::send`] waits for writability.
    pub(super) const SEND: u16 = 1 << 6;
    pub(super) const ACCEPT: u16 = 1 << 7;
    pub(super) const LISTED: u16 = 1 << 8;
    /// A unix connect that found the backlog full.
    pub(super) const RETRY: u16 = 1 << 9;
    /// A send was cut short: the next one waits for the edge.
    pub(super) const BLOCKED: u16 = 1 << 10;
    /// Registered for output too.
    pub(super) const WATCHES_OUTPUT: u16 = 1 << 11;
    /// A watch for a hang-up waits for [`HUNG_UP`].
    pub(super) const HANGUP: u16 = 1 << 12;
    /// What is armed and waits for readiness.
    pub(super) const OPERATIONS: u16 = CONNECT | RECV | RECV_INTO | SEND | ACCEPT;
}

/// One connection or listener.
#[derive(Debug, Default)]
struct Slot {
    fd: Option<OwnedFd>,
    /// Of the key; 0 if the slot is free.
    generation: u32,
    state: u16,
    /// Reads or accepts in turn `turn`, against the budget.
    spent: u16,
    turn: u32,
    /// Waits for writability ([`bit::SEND`]), or was given along with a connect that is pending.
    send: Option<SendBatch>,
}

#[derive(Debug)]
pub(crate) struct EpollBackend {
    epoll: Epoll,
    epoch: Instant,
    inbox: Arc<Inbox>,
    pool: Pool,
    /// The pool buffer that is being filled.
    open_buffer: Option<u16>,
    parameters: Parameters,
    precise_wait: bool,
    slots: Vec<Slot>,
    recv_bufs: RecvBufs,
    /// Completed operations that [`Backend::next`] has not handed out yet.
    done: VecDeque<Completed<OwnedFd>>,
    /// Slots with an armed operation in a ready direction. A key that was closed since is skipped.
    work: VecDeque<Key>,
    /// Slots that have used up their budget for this turn.
    spent: VecDeque<Key>,
    retries: Vec<Retry>,
    events: Box<[libc::epoll_event]>,
    turn: u32,
    /// Turns since the kernel was asked.
    unasked: u32,
    /// What the kernel claimed that cannot be: nothing is handed out any more.
    failed: Option<Violation>,
    stats: BackendStats,
}

impl EpollBackend {
    pub(crate) fn new(
        parameters: Parameters,
        inbox: Arc<Inbox>,
        precise_wait: bool,
    ) -> Result<EpollBackend, Error> {
        let epoll = Epoll::new().map_err(|error| Error::os("epoll_create1", &error))?;
        epoll
            .add(inbox.fd(), libc::EPOLLIN, WAKE_TOKEN)
            .map_err(|error| Error::os("epoll_ctl", &error))?;
        let (count, size) = parameters.buffers;
        let pool = Pool::new(count, size, parameters.low_watermark)
            .map_err(|error| Error::os("mmap", &error))?;
        Ok(EpollBackend {
            epoll,
            epoch: Instant::now(),
            inbox,
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
            unasked: 0,
            failed: None,
            stats: BackendStats::default(),
        })
    }

    /// Whether epoll_pwait2 exists and is allowed.
    pub(crate) fn try_precise_wait() -> Result<(), Errno> {
        let epoll = Epoll::new().map_err(|error| Errno::of(&error))?;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }];
        epoll.wait_precise(&mut events, Some(Duration::ZERO)).map(drop)
    }

    /// The slot of a key that the engine holds.
    #[inline(always)]
    fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.slot()];
        assert_eq!(slot.generation, key.generation(), "the engine names only what it holds");
        slot
    }

    /// The slot of a key that may be closed by now.
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
        assert_eq!(slot.generation, 0, "a slot is used again after the close of its last key");
        *slot = Slot { fd, generation: key.generation(), ..Slot::default() };
    }

    /// Frees the slot of a key, and returns its descriptor.
    ///
    /// # Panics
    /// If an operation is in flight.
    fn vacate(&mut self, key: Key) -> Option<OwnedFd> {
        let slot = self.slot(key);
        let in_flight = slot.state & (bit::OPERATIONS | bit::RETRY) != 0 || slot.send.is_some();
        assert!(!in_flight, "no operation is in flight at the end of a key");
        std::mem::take(slot).fd
    }

    /// Registers the descriptor of a slot.
    fn register(&mut self, key: Key, events: libc::c_int) -> Result<(), Errno> {
        self.stats.syscalls += 1;
        let slot = &mut self.slots[key.slot()];
        if events & libc::EPOLLOUT != 0 {
            slot.state |= bit::WATCHES_OUTPUT;
        }
        let fd = slot.fd.as_ref().expect("registered with a descriptor").as_fd();
        self.epoll.add(fd, events, key.bits()).map_err(|error| Errno::of(&error))
    }

    /// Lets edges tell of output too. If there is room again already, that is the first edge.
    fn watch_output(&mut self, key: Key) -> Result<(), Errno> {
        let slot = self.slot(key);
        if slot.state & bit::WATCHES_OUTPUT != 0 {
            return Ok(());
        }
        slot.state |= bit::WATCHES_OUTPUT;
        self.stats.syscalls += 1;
        let fd = self.slots[key.slot()].fd.as_ref().expect("a send has a socket").as_fd();
        self.epoll.modify(fd, BOTH, key.bits()).map_err(|error| Errno::of(&error))
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
    fn can_work(&self) -> bool {
        let input = bit::RECV | bit::RECV_INTO | bit::ACCEPT;
        let output = bit::SEND | bit::CONNECT;
        self.state & bit::READABLE != 0 && self.state & input != 0
            || self.state & bit::WRITABLE != 0 && self.state & output != 0
    }
}

impl Backend for EpollBackend {
    type Socket = OwnedFd;
    const RECEIVES_WHEN_ASKED: bool = true;
    const EARLY_PAYLOADS: usize = usize::MAX;

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
            Operation::WatchHangup => self.start_watch(key),
            Operation::Shutdown => self.shut_down_output(key),
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
        Ok(self.vacate(key).expect("it was just there"))
    }

    fn watch_fd(&mut self) -> Result<OwnedFd, Error> {
        self.epoll.fd().try_clone().map_err(|error| Error::os("as_fd", &error))
    }

    fn watch_reset(&mut self) {
        // An epoll instance is unreadable by itself once its events are taken.
    }

    fn stats(&self) -> BackendStats {
        BackendStats { heap_copies: self.pool.heap_copies(), ..self.stats }
    }

    fn shut_down(&mut self, _patience: Duration) -> bool {
        // Nothing is ever in the kernel's hands between calls.
        true
    }
}

#[cfg(test)]
mod tests;
