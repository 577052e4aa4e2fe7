//! The system calls on sockets. Owns: how a connect, send, receive and accept is tried, and what its answer means for
//! readiness.

use super::{BOTH, Done, EpollBackend, INPUT, Outcome, Retry, Target, bit};
use crate::backend::windows::Window;
use crate::backend::{ConnectRequest, Op};
use crate::buf::{Lease, SendQueue, Written};
use crate::error::Errno;
use crate::id::Key;
use crate::net::socket;
use socket2::SockRef;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Piecewise filling opens the next buffer when less than this is left, so that no read is cut short for a sliver.
const LEAST_ROOM: u32 = 2048;
const IOVECS_MAX: usize = 1024;

impl EpollBackend {
    /// True if the first send was tried along with it.
    pub(super) fn connect(&mut self, key: Key, request: &ConnectRequest, first: Option<&mut SendQueue>) -> bool {
        let options = &request.options;
        self.stats.syscalls += 3;
        let made = socket::connecting(&request.addr, options.local, &options.socket, true)
            .and_then(|fd| Ok((fd, request.addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))?)));
        let (fd, addr) = match made {
            Ok(pair) => pair,
            Err(errno) => {
                self.finish(key, Op::Connect, Outcome::Failed(errno));
                return false;
            }
        };
        let tried = SockRef::from(&fd).connect(&addr).map_err(|error| Errno::of(&error));
        self.slot(key).fd = Some(fd);
        match tried {
            Ok(()) => self.established(key),
            Err(Errno(libc::EAGAIN)) if request.addr.is_unix() => {
                self.retries.push(Retry { key, addr });
                self.slot(key).state |= bit::RETRY;
            }
            Err(Errno(libc::EINPROGRESS)) => match first.filter(|_| request.addr.is_local()) {
                Some(queue) => return self.send_along(key, queue),
                None => self.await_connect(key),
            },
            Err(errno) => self.finish(key, Op::Connect, Outcome::Failed(errno)),
        }
        false
    }

    /// Through the loopback device the peer has answered before connect(2) returns: then the first send goes at once, and nobody has to
    /// wait until the socket is writable.
    fn send_along(&mut self, key: Key, queue: &mut SendQueue) -> bool {
        let fd = self.slot(key).raw_fd();
        let (result, given) = self.try_send(fd, queue);
        match result {
            Ok(sent) => {
                self.established(key);
                if sent < given {
                    self.cut_short(key, result);
                }
                self.finish(key, Op::Send, Outcome::Count(sent));
            }
            Err(Errno(libc::EAGAIN)) => {
                self.slot(key).state |= bit::SEND | bit::BLOCKED;
                self.await_connect(key);
            }
            Err(errno) => {
                self.finish(key, Op::Connect, Outcome::Failed(errno));
                self.finish(key, Op::Send, Outcome::Failed(Errno(libc::ECANCELED)));
            }
        }
        true
    }

    fn await_connect(&mut self, key: Key) {
        match self.register(key, false, BOTH) {
            Ok(()) => self.slot(key).state |= bit::CONNECT,
            Err(error) => self.finish(key, Op::Connect, Outcome::Failed(Errno::of(&error))),
        }
    }

    fn established(&mut self, key: Key) {
        let registered = self.register(key, false, INPUT);
        let outcome = registered.map_or_else(|error| Outcome::Failed(Errno::of(&error)), |()| Outcome::Count(0));
        self.finish(key, Op::Connect, outcome);
    }

    /// Tries connects to unix sockets again whose backlog was full.
    pub(super) fn retry_connects(&mut self) {
        for retry in std::mem::take(&mut self.retries) {
            let key = retry.key;
            self.stats.syscalls += 1;
            let fd = self.slot(key).fd.as_ref().expect("kept for the retry");
            let tried = SockRef::from(fd).connect(&retry.addr).map_err(|error| Errno::of(&error));
            if tried == Err(Errno(libc::EAGAIN)) {
                self.retries.push(retry);
                continue;
            }
            self.slot(key).state &= !bit::RETRY;
            match tried {
                Ok(()) => self.established(key),
                Err(errno) => self.finish(key, Op::Connect, Outcome::Failed(errno)),
            }
        }
    }

    /// The socket of a pending connect became ready. What failed comes with EPOLLERR or EPOLLHUP, and the pending error says why.
    pub(super) fn connected(&mut self, key: Key) -> Done<OwnedFd> {
        let slot = self.slot(key);
        slot.state &= !bit::CONNECT;
        let mut outcome = Outcome::Count(0);
        if slot.state & bit::HUNG_UP != 0 {
            let failure = socket::take_error(slot.fd.as_ref().expect("a connect has a socket"));
            self.stats.syscalls += 1;
            outcome = failure.map_or(outcome, Outcome::Failed);
        }
        Done { key, op: Op::Connect, more: false, outcome }
    }

    /// Tries at once, and tells what was taken; on EAGAIN the operation waits for the edge, and then tells that nothing was, so that
    /// the engine gathers anew.
    #[inline(always)]
    pub(super) fn send(&mut self, key: Key, queue: &mut SendQueue) -> Option<usize> {
        let slot = self.slot(key);
        if slot.state & bit::BLOCKED != 0 {
            slot.state |= bit::SEND;
            return None;
        }
        let fd = slot.raw_fd();
        match self.try_send(fd, queue) {
            (Ok(sent), given) if sent == given => Some(sent),
            (result, _) => self.cut_short(key, result),
        }
    }

    /// What the kernel took, of how many bytes.
    #[inline(always)]
    fn try_send(&mut self, fd: RawFd, queue: &mut SendQueue) -> (Result<usize, Errno>, usize) {
        match queue.entries() {
            1 => self.send_one(fd, queue.gather(1).next().expect("counted")),
            _ => self.send_gathered(fd, queue.gather(self.tuning.gather_max)),
        }
    }

    /// Not all of a send was taken: the rest waits for the edge.
    #[inline(never)]
    fn cut_short(&mut self, key: Key, result: Result<usize, Errno>) -> Option<usize> {
        let taken = match result {
            Err(Errno(libc::EAGAIN)) => {
                self.slot(key).state |= bit::SEND;
                None
            }
            Err(errno) => {
                self.finish(key, Op::Send, Outcome::Failed(errno));
                return None;
            }
            Ok(taken) => Some(taken),
        };
        let slot = self.slot(key);
        slot.state = slot.state & !bit::WRITABLE | bit::BLOCKED;
        // The kernel refuses this only when it is out of memory. Then sending is simply tried again and again.
        if self.watch_output(key).is_err() {
            let slot = self.slot(key);
            slot.state = slot.state & !(bit::BLOCKED | bit::WATCHES_OUTPUT) | bit::WRITABLE;
            self.list(Target { slot: key.slot, listener: false });
        }
        taken
    }

    #[inline(always)]
    fn send_one(&mut self, fd: RawFd, bytes: &[u8]) -> (Result<usize, Errno>, usize) {
        // SAFETY: the bytes are readable through the call. MSG_NOSIGNAL: an error, not a SIGPIPE.
        let result =
            self.patiently(|| unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) });
        (result, bytes.len())
    }

    #[inline(never)]
    fn send_gathered<'a>(&mut self, fd: RawFd, parts: impl Iterator<Item = &'a [u8]>) -> (Result<usize, Errno>, usize) {
        let mut iovecs = [const { MaybeUninit::<libc::iovec>::uninit() }; IOVECS_MAX];
        let mut count = 0;
        let mut given = 0;
        for part in parts {
            iovecs[count].write(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            count += 1;
            given += part.len();
        }
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr().cast();
        message.msg_iovlen = count as _;
        // SAFETY: the first `count` entries are initialised and point into the queue's payloads, which outlive the call.
        (self.patiently(|| unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL) }), given)
    }

    /// Repeats a system call that a signal interrupted.
    #[inline(always)]
    fn patiently(&mut self, call: impl Fn() -> isize) -> Result<usize, Errno> {
        loop {
            self.stats.syscalls += 1;
            match usize::try_from(call()).map_err(|_| Errno::last()) {
                Err(Errno(libc::EINTR)) => continue,
                result => return result,
            }
        }
    }

    /// One read into the pool. `Err(None)`: nothing there yet.
    #[inline(always)]
    pub(super) fn recv(&mut self, key: Key) -> Result<Lease, Option<Done<OwnedFd>>> {
        let Some(buffer) = self.open_buffer.take().or_else(|| self.pool.checkout()) else {
            return Err(self.recv_ended(key, bit::RECV, Some(Errno(libc::ENOBUFS))));
        };
        self.pool.rewind(buffer);
        let (start, room) = self.pool.room(buffer);
        // SAFETY: the room of a checked-out buffer is writable and nobody else's.
        let result = unsafe { self.recv_at(key, start.as_ptr(), room as usize) };
        let Ok(len @ 1..) = result else {
            self.keep_open(buffer);
            return Err(self.recv_ended(key, bit::RECV, result.map(drop).err()));
        };
        self.list(Target { slot: key.slot, listener: false });
        let more = room - len as u32 >= LEAST_ROOM.min(self.pool.size());
        if more {
            self.open_buffer = Some(buffer);
        }
        Ok(self.pool.deliver(buffer, len as u32, more).expect("checked out above, and given to recv(2) with its room"))
    }

    /// One read into a caller's buffer.
    pub(super) fn recv_into(&mut self, key: Key) -> Option<Done<OwnedFd>> {
        let Window { start, len } = self.windows.of(key);
        // SAFETY: the engine keeps the window in place until this operation has ended (contract, rule 3).
        let result = unsafe { self.recv_at(key, start, len) };
        if result == Err(Errno(libc::EAGAIN)) {
            return None;
        }
        self.windows.forget(key);
        match result {
            Ok(len @ 1..) => {
                self.slot(key).state &= !bit::FILL;
                // SAFETY: recv(2) just wrote that many bytes at the start of the window.
                let outcome = Outcome::Filled(unsafe { Written::new(len) });
                Some(Done { key, op: Op::Recv, more: false, outcome })
            }
            result => self.recv_ended(key, bit::FILL, result.map(drop).err()),
        }
    }

    #[inline(never)]
    fn recv_ended(&mut self, key: Key, operation: u16, errno: Option<Errno>) -> Option<Done<OwnedFd>> {
        if errno == Some(Errno(libc::EAGAIN)) {
            return None;
        }
        self.slot(key).state &= !operation;
        let outcome = errno.map_or(Outcome::Count(0), Outcome::Failed);
        Some(Done { key, op: Op::Recv, more: false, outcome })
    }

    fn keep_open(&mut self, buffer: u16) {
        match self.pool.room(buffer).1 == self.pool.size() {
            true => self.pool.put_back(buffer),
            false => self.open_buffer = Some(buffer),
        }
    }

    /// # Safety
    /// `len` bytes at `start` must be writable, and nobody else's.
    #[inline(always)]
    unsafe fn recv_at(&mut self, key: Key, start: *mut u8, len: usize) -> Result<usize, Errno> {
        let fd = self.slot(key).raw_fd();
        // SAFETY: as promised by the caller.
        let result = self.patiently(|| unsafe { libc::recv(fd, start.cast(), len, 0) });
        let slot = &mut self.conns[key.slot as usize];
        match result {
            Err(Errno(libc::EAGAIN)) => slot.state &= !(bit::READABLE | bit::HUNG_UP),
            // A short read emptied the socket, and what comes next makes a new edge.
            Ok(taken) if taken < len && slot.state & bit::HUNG_UP == 0 => slot.state &= !bit::READABLE,
            _ => {}
        }
        result
    }

    /// Accepts one connection. `None`: nobody is waiting.
    pub(super) fn accept(&mut self, key: Key) -> Option<Done<OwnedFd>> {
        let fd = self.listener(key).fd.as_ref().expect("an open listener").as_raw_fd();
        loop {
            self.stats.syscalls += 1;
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: no address is asked for.
            let accepted = unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
            if accepted >= 0 {
                // SAFETY: accept4 just made it, and nobody else has it.
                let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
                return Some(Done { key, op: Op::Accept, more: true, outcome: Outcome::Socket(socket) });
            }
            match Errno::last() {
                // The connection was gone before it was accepted, or it was a signal.
                Errno(libc::EINTR | libc::ECONNABORTED) => continue,
                Errno(libc::EAGAIN) => {
                    self.listener(key).state &= !bit::READABLE;
                    return None;
                }
                errno => {
                    self.listener(key).state &= !bit::ACCEPT;
                    return Some(Done { key, op: Op::Accept, more: false, outcome: Outcome::Failed(errno) });
                }
            }
        }
    }
}
