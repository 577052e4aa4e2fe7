//! The epoll backend: operations are tried at once and wait for readiness only if they must.
//!
//! Owns: the epoll instance, the sockets, their ready bits. Each descriptor is registered once, edge-triggered, so that no epoll_ctl
//! happens in steady state: for input at first, and for output too from the moment that a send finds its peer slow. (On a unix socket
//! each read of the peer is an edge for whoever watches output: a wake-up a request, for nothing.) Invariant: an operation that is armed and whose direction is
//! ready is on the work list, so no edge is ever lost. Must not know: connection states, queues, timers.
#![allow(unsafe_code)]

mod io;
mod work;

use super::windows::Windows;
use super::{Backend, BackendStats, CloseHow, ConnectRequest, Done, Next, Op, Outcome, QueueFull, Tuning};
use crate::buf::{Fill, Lease, Pool, SendQueue};
use crate::error::{Errno, Error};
use crate::id::Key;
use crate::net::{Addr, socket};
use crate::options::ListenOptions;
use crate::sys::Epoll;
use crate::waker::Inbox;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The token of the waker; no slot has it.
const WAKE_TOKEN: u64 = u64::MAX;
/// In the upper half of a token: this is a listener.
const LISTENER_BIT: u64 = 1 << 63;
const INPUT: libc::c_int = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
const BOTH: libc::c_int = INPUT | libc::EPOLLOUT;
const EVENTS_PER_WAIT: usize = 512;
/// While there is work, the kernel is asked for more of it in each of so many turns only.
const TURNS_PER_WAIT: u32 = 8;
/// How long a connect to a unix socket with a full backlog waits before it tries again: readiness does not tell.
const UNIX_RETRY: Duration = Duration::from_millis(2);

/// Bits of [`Slot::state`]: readiness, armed operations, and whether the slot is on the work list.
mod bit {
    pub(super) const READABLE: u16 = 1;
    pub(super) const WRITABLE: u16 = 1 << 1;
    /// RDHUP, HUP or ERR was seen: short reads prove nothing, read on until EAGAIN or the end.
    pub(super) const HUNG_UP: u16 = 1 << 2;
    pub(super) const CONNECT: u16 = 1 << 3;
    pub(super) const RECV: u16 = 1 << 4;
    pub(super) const FILL: u16 = 1 << 5;
    pub(super) const SEND: u16 = 1 << 6;
    pub(super) const ACCEPT: u16 = 1 << 7;
    pub(super) const LISTED: u16 = 1 << 8;
    /// A unix connect that found the backlog full.
    pub(super) const RETRY: u16 = 1 << 9;
    /// A send was cut short: the next one waits for the edge.
    pub(super) const BLOCKED: u16 = 1 << 10;
    /// Registered for output too.
    pub(super) const WATCHES_OUTPUT: u16 = 1 << 11;
    pub(super) const OPERATIONS: u16 = CONNECT | RECV | FILL | SEND | ACCEPT;
}

/// One connection or listener.
#[derive(Debug)]
struct Slot {
    fd: Option<OwnedFd>,
    generation: u32,
    state: u16,
    /// Reads or accepts in turn `turn`, against the budget.
    spent: u16,
    turn: u32,
}

#[derive(Debug)]
pub(crate) struct EpollBackend {
    epoll: Epoll,
    epoch: Instant,
    inbox: Arc<Inbox>,
    pool: Pool,
    /// The pool buffer that is being filled.
    open_buffer: Option<u16>,
    tuning: Tuning,
    precise_wait: bool,
    conns: Vec<Slot>,
    listeners: Vec<Slot>,
    windows: Windows,
    /// Finished operations that wait to be told.
    done: VecDeque<Done<OwnedFd>>,
    /// Slots with an armed operation in a ready direction, and those that have used up their budget for this turn.
    work: VecDeque<Target>,
    spent: VecDeque<Target>,
    retries: Vec<Retry>,
    events: Box<[libc::epoll_event]>,
    turn: u32,
    /// Turns since the kernel was asked.
    unasked: u32,
    stats: BackendStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    slot: u32,
    listener: bool,
}

#[derive(Debug)]
struct Retry {
    key: Key,
    addr: socket2::SockAddr,
}

impl EpollBackend {
    pub(crate) fn new(tuning: Tuning, inbox: Arc<Inbox>, precise_wait: bool) -> Result<EpollBackend, Error> {
        let epoll = Epoll::new().map_err(|error| Error::os("epoll_create1", &error))?;
        epoll.add(inbox.fd(), libc::EPOLLIN, WAKE_TOKEN).map_err(|error| Error::os("epoll_ctl", &error))?;
        let (count, size) = tuning.buffers;
        let pool = Pool::new(count, size, tuning.low_watermark).map_err(|error| Error::os("mmap", &error))?;
        Ok(EpollBackend {
            epoll,
            epoch: Instant::now(),
            inbox,
            pool,
            open_buffer: None,
            conns: Vec::with_capacity(tuning.connections_reserved),
            tuning,
            precise_wait,
            listeners: Vec::new(),
            windows: Windows::default(),
            done: VecDeque::new(),
            work: VecDeque::new(),
            spent: VecDeque::new(),
            retries: Vec::new(),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_WAIT].into(),
            turn: 0,
            unasked: 0,
            stats: BackendStats::default(),
        })
    }

    /// Whether epoll_pwait2 is there and allowed.
    pub(crate) fn try_precise_wait() -> Result<(), Errno> {
        let epoll = Epoll::new().map_err(|error| Errno::of(&error))?;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }];
        epoll.wait_precise(&mut events, Some(Duration::ZERO)).map(drop)
    }

    #[inline]
    fn slots(&mut self, listener: bool) -> &mut Vec<Slot> {
        if listener { &mut self.listeners } else { &mut self.conns }
    }

    /// The slot of a key that the engine holds.
    #[inline]
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

    fn occupy(&mut self, key: Key, listener: bool, fd: Option<OwnedFd>) {
        let slots = self.slots(listener);
        let index = key.slot as usize;
        while slots.len() <= index {
            slots.push(Slot { fd: None, generation: 0, state: 0, spent: 0, turn: 0 });
        }
        let listed = slots[index].state & bit::LISTED;
        slots[index] = Slot { fd, generation: key.generation.get(), state: listed, spent: 0, turn: 0 };
    }

    fn register(&mut self, key: Key, listener: bool, events: libc::c_int) -> std::io::Result<()> {
        self.stats.syscalls += 1;
        let slots = if listener { &mut self.listeners } else { &mut self.conns };
        let slot = &mut slots[key.slot as usize];
        if events & libc::EPOLLOUT != 0 {
            slot.state |= bit::WATCHES_OUTPUT;
        }
        let fd = slot.fd.as_ref().expect("registered with a descriptor").as_fd();
        self.epoll.add(fd, events, token(key, listener))
    }

    /// From now on edges tell of output too. If there is room again already, that is the first edge.
    fn watch_output(&mut self, key: Key) -> Result<(), Errno> {
        let slot = self.slot(key);
        if slot.state & bit::WATCHES_OUTPUT != 0 {
            return Ok(());
        }
        slot.state |= bit::WATCHES_OUTPUT;
        self.stats.syscalls += 1;
        let fd = self.conns[key.slot as usize].fd.as_ref().expect("a send has a socket").as_fd();
        self.epoll.modify(fd, BOTH, token(key, false)).map_err(|error| Errno::of(&error))
    }

    fn finish(&mut self, key: Key, op: Op, outcome: Outcome<OwnedFd>) {
        self.done.push_back(Done { key, op, more: false, outcome });
    }

    /// Puts a slot on the work list if an armed operation of it can go on.
    #[inline]
    fn list(&mut self, target: Target) {
        let slots = if target.listener { &mut self.listeners } else { &mut self.conns };
        let slot = &mut slots[target.slot as usize];
        if slot.state & bit::LISTED == 0 && slot.can_work() {
            slot.state |= bit::LISTED;
            self.work.push_back(target);
        }
    }

    fn arm(&mut self, key: Key, listener: bool, operation: u16) {
        let slot = if listener { self.listener(key) } else { self.slot(key) };
        assert_eq!(slot.state & operation, 0, "one operation of a kind at a time");
        slot.state |= operation;
        self.list(Target { slot: key.slot, listener });
    }

    fn close_fd(&mut self, key: Key, listener: bool, how: CloseHow) {
        let known =
            self.slots(listener).get(key.slot as usize).is_some_and(|slot| slot.generation == key.generation.get());
        if !known {
            // Closed before it was ever started.
            return;
        }
        let slot = if listener { self.listener(key) } else { self.slot(key) };
        let fd = slot.fd.take();
        slot.state &= bit::LISTED;
        slot.generation = 0;
        self.retries.retain(|retry| retry.key != key || listener);
        if let Some(fd) = fd {
            if how == CloseHow::Reset {
                self.stats.syscalls += 1;
                socket::reset_on_close(&fd);
            }
            // The registration goes with the descriptor. A duplicate elsewhere (in a forked child, say) keeps it alive: then edges of a
            // connection that nobody knows any more are counted and dropped, until the duplicate is closed.
            self.stats.syscalls += 1;
            drop(fd);
        }
    }
}

fn token(key: Key, listener: bool) -> u64 {
    u64::from(key.slot) | u64::from(key.generation24()) << 32 | if listener { LISTENER_BIT } else { 0 }
}

impl Slot {
    #[inline]
    fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    #[inline]
    fn can_work(&self) -> bool {
        let readable = self.state & bit::READABLE != 0 && self.state & (bit::RECV | bit::FILL | bit::ACCEPT) != 0;
        let writable = self.state & bit::WRITABLE != 0 && self.state & (bit::SEND | bit::CONNECT) != 0;
        readable || writable
    }
}

impl Backend for EpollBackend {
    type Socket = OwnedFd;
    const RECEIVES_WHEN_ASKED: bool = true;

    fn epoch(&self) -> Instant {
        self.epoch
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn listen(&mut self, key: Key, addr: &Addr, options: &ListenOptions) -> Result<(), Error> {
        let fd = socket::listening(addr, options, true)?;
        self.occupy(key, true, Some(fd));
        self.register(key, true, INPUT).map_err(|error| {
            self.listeners[key.slot as usize].fd = None;
            Error::os("epoll_ctl", &error)
        })
    }

    fn attach(&mut self, key: Key, socket: OwnedFd) -> Result<(), Errno> {
        self.occupy(key, false, Some(socket));
        self.register(key, false, INPUT).map_err(|error| Errno::of(&error))
    }

    fn attach_listener(&mut self, key: Key, fd: OwnedFd) -> Result<(), Error> {
        self.occupy(key, true, Some(fd));
        if let Err(error) = self.register(key, true, INPUT) {
            self.finish(key, Op::Accept, Outcome::Failed(Errno::of(&error)));
        }
        Ok(())
    }

    fn adopt(&mut self, fd: OwnedFd) -> Result<OwnedFd, Error> {
        Ok(fd)
    }

    fn release(&mut self, key: Key) -> Result<OwnedFd, Error> {
        let fd = self.slot(key).fd.take().ok_or(Error::State("the connection has no descriptor"))?;
        let slot = self.slot(key);
        slot.state &= bit::LISTED;
        slot.generation = 0;
        self.epoll.remove(fd.as_fd()).map_err(|error| Error::os("epoll_ctl", &error))?;
        Ok(fd)
    }

    fn start_connect(
        &mut self,
        key: Key,
        request: &ConnectRequest,
        first: Option<&mut SendQueue>,
    ) -> Result<bool, QueueFull> {
        self.occupy(key, false, None);
        Ok(self.connect(key, request, first))
    }

    fn start_accept(&mut self, listener: Key) -> Result<(), QueueFull> {
        self.arm(listener, true, bit::ACCEPT);
        Ok(())
    }

    fn start_recv(&mut self, key: Key) -> Result<(), QueueFull> {
        self.arm(key, false, bit::RECV);
        Ok(())
    }

    fn start_recv_into(&mut self, key: Key, fill: &mut Fill) -> Result<(), QueueFull> {
        self.windows.set(key, fill.window());
        self.arm(key, false, bit::FILL);
        Ok(())
    }

    #[inline(always)]
    fn start_send(&mut self, key: Key, queue: &mut SendQueue, _zero_copy: bool) -> Result<Option<usize>, QueueFull> {
        Ok(self.send(key, queue))
    }

    fn can_zero_copy(&self) -> bool {
        false
    }

    fn cancel(&mut self, key: Key, op: Op) -> Result<(), QueueFull> {
        let slot = if op == Op::Accept { self.listener(key) } else { self.slot(key) };
        let operation = match op {
            Op::Connect => bit::CONNECT | bit::RETRY,
            Op::Recv => bit::RECV | bit::FILL,
            Op::Send => bit::SEND,
            Op::Accept => bit::ACCEPT,
            Op::Close | Op::CloseListener | Op::Wake => 0,
        };
        // What is not armed has finished and waits to be told.
        if slot.state & operation != 0 {
            slot.state &= !operation;
            if op == Op::Recv {
                self.windows.forget(key);
            }
            self.retries.retain(|retry| op != Op::Connect || retry.key != key);
            self.finish(key, op, Outcome::Failed(Errno(libc::ECANCELED)));
        }
        Ok(())
    }

    fn shutdown_write(&mut self, key: Key) {
        self.stats.syscalls += 1;
        if let Some(fd) = &self.slot(key).fd {
            socket::shutdown_write(fd);
        }
    }

    fn start_close(&mut self, key: Key, how: CloseHow) -> Result<(), QueueFull> {
        self.close_fd(key, false, how);
        self.finish(key, Op::Close, Outcome::Count(0));
        Ok(())
    }

    fn start_close_listener(&mut self, listener: Key) -> Result<(), QueueFull> {
        self.close_fd(listener, true, CloseHow::Quiet);
        self.finish(listener, Op::CloseListener, Outcome::Count(0));
        Ok(())
    }

    fn wait(&mut self, until: Option<u64>) -> Result<(), Error> {
        self.wait_for_events(until)
    }

    #[inline(always)]
    fn next(&mut self, data: impl FnMut(Key, bool, Lease)) -> Next<OwnedFd> {
        self.next_thing(data)
    }

    fn has_next(&self) -> bool {
        !self.done.is_empty() || !self.work.is_empty() || !self.spent.is_empty()
    }

    fn free_buffers(&self) -> usize {
        self.pool.free() + usize::from(self.open_buffer.is_some())
    }

    fn peer_addr(&self, key: Key) -> std::io::Result<Addr> {
        socket::peer_addr(self.fd(key).ok_or(std::io::ErrorKind::NotConnected)?)
    }

    fn local_addr(&self, key: Key) -> std::io::Result<Addr> {
        socket::local_addr(self.fd(key).ok_or(std::io::ErrorKind::NotConnected)?)
    }

    fn listener_addr(&self, listener: Key) -> std::io::Result<Addr> {
        socket::local_addr(self.listeners[listener.slot as usize].fd.as_ref().ok_or(std::io::ErrorKind::NotConnected)?)
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        let slot = self.conns.get(key.slot as usize).filter(|slot| slot.generation == key.generation.get())?;
        slot.fd.as_ref().map(AsFd::as_fd)
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
