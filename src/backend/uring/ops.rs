//! Operations as submission queue entries. Owns: which entry an operation starts with, and how it is cancelled.

use super::bufring::{BufRing, MAIN};
use super::slot::mark;
use super::token::{Kind, pack};
use super::{Opening, Step, Uring};
use crate::backend::{ConnectRequest, Op, Outcome, QueueFull};
use crate::buf::SendQueue;
use crate::error::Errno;
use crate::id::Key;
use crate::net::{Addr, socket};
use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};
use socket2::SockRef;
use std::os::fd::OwnedFd;

impl Uring {
    /// True if the first send follows without a start.
    pub(super) fn connect(
        &mut self,
        key: Key,
        request: &ConnectRequest,
        first: Option<&mut SendQueue>,
    ) -> Result<bool, QueueFull> {
        let by_call = self.style.polled || request.addr.is_unix();
        if self.style.socket_op && !by_call {
            return self.open_socket(key, request, first);
        }
        self.ring.make_connect_room()?;
        let options = &request.options;
        self.syscalls += 2;
        let made = socket::connecting(&request.addr, options.local, &options.socket, by_call);
        let (fd, addr) =
            match made.and_then(|fd| Ok((fd, request.addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))?))) {
                Ok(pair) => pair,
                Err(errno) => {
                    Self::occupy(&mut self.conns, key, None);
                    self.finish(key, Op::Connect, Outcome::Failed(errno));
                    return Ok(false);
                }
            };
        Self::occupy(&mut self.conns, key, Some(fd));
        match by_call {
            true => self.connect_by_call(key, &request.addr, addr),
            false => self.push_connect(key, addr, Flags::empty()),
        }
        Ok(false)
    }

    /// Room for an entry and an address must have been made.
    fn push_connect(&mut self, key: Key, addr: socket2::SockAddr, flags: Flags) {
        let (addr, len) = self.ring.arena.addr(addr);
        let entry = opcode::Connect::new(self.fd_of(key), addr, len).build().flags(flags);
        // SAFETY: the address is in the arena, which keeps it until the entry is submitted.
        unsafe { self.ring.push(entry.user_data(pack(Kind::Connect, key))) };
        let slot = self.slot(key);
        slot.open = Kind::Connect;
        slot.set(mark::UNUSED, true);
    }

    /// A connect in two entries: the socket first. With hundreds of connects under way both cost less than one entry and a call. The
    /// first send is linked to the second, so that the request leaves with the end of the handshake.
    fn open_socket(
        &mut self,
        key: Key,
        request: &ConnectRequest,
        first: Option<&mut SendQueue>,
    ) -> Result<bool, QueueFull> {
        self.ring.make_room()?;
        Self::occupy(&mut self.conns, key, None);
        let domain = request.addr.domain().into();
        let socket = opcode::Socket::new(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP);
        // SAFETY: names no memory.
        unsafe { self.ring.push(socket.build().user_data(pack(Kind::Socket, key))) };
        self.slot(key).open = Kind::Socket;
        // A list of payloads would have to be kept until then: those wait for the connect.
        let first = first.filter(|queue| queue.entries() == 1).and_then(|queue| queue.gather(1).next());
        let first = first.map(|bytes| (bytes.as_ptr(), u32::try_from(bytes.len()).unwrap_or(1 << 30)));
        self.opening.push_back(Opening { key, request: request.clone(), first });
        Ok(first.is_some())
    }

    /// The first entry of a connect is done.
    pub(super) fn socket_made(&mut self, key: Key, made: Result<OwnedFd, Errno>) {
        match made {
            Ok(fd) => {
                self.slot(key).fd = Some(fd);
                self.step(key, Kind::Connect);
            }
            Err(errno) => {
                let opening = self.take_opening(key);
                self.not_opened(&opening, errno);
            }
        }
    }

    /// The second one. Room for it and the send must have been made.
    fn connect_made(&mut self, key: Key) {
        let opening = self.take_opening(key);
        let (addr, options) = (&opening.request.addr, &opening.request.options);
        let fd = self.slot(key).fd.as_ref().expect("made by the entry before");
        let ready = socket::set_up(fd, addr, options.local, &options.socket);
        self.syscalls += 1;
        match ready.and_then(|()| addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))) {
            Ok(name) => {
                self.push_connect(key, name, if opening.first.is_some() { Flags::IO_LINK } else { Flags::empty() });
                if let Some((start, len)) = opening.first {
                    let send = opcode::Send::new(self.fd_of(key), start, len).flags(libc::MSG_NOSIGNAL).build();
                    // SAFETY: the queue keeps the payload in place until the completion (contract, rule 3).
                    unsafe { self.ring.push(send.user_data(pack(Kind::Send, key))) };
                    self.slot(key).send = Kind::Send;
                }
            }
            Err(errno) => self.not_opened(&opening, errno),
        }
    }

    fn not_opened(&mut self, opening: &Opening, errno: Errno) {
        self.finish(opening.key, Op::Connect, Outcome::Failed(errno));
        if opening.first.is_some() {
            self.finish(opening.key, Op::Send, Outcome::Failed(Errno(libc::ECANCELED)));
        }
    }

    fn take_opening(&mut self, key: Key) -> Opening {
        // Most often the first: sockets are made in order.
        let index = self.opening.iter().position(|opening| opening.key == key);
        self.opening.remove(index.expect("kept until the connect is staged")).expect("just found")
    }

    /// Tier `polled`: a CONNECT entry of 5.6 would tie up a worker until the peer answers. Unix sockets: one whose listener's
    /// backlog is full would do so on every kernel, and without that connect(2) never waits.
    fn connect_by_call(&mut self, key: Key, addr: &Addr, name: socket2::SockAddr) {
        self.syscalls += 1;
        let tried = SockRef::from(self.slot(key).fd.as_ref().expect("just made")).connect(&name);
        match tried.map_err(|error| Errno::of(&error)) {
            Ok(()) => self.connected_by_call(key),
            Err(Errno(libc::EINPROGRESS)) => {
                let entry = opcode::PollAdd::new(self.fd_of(key), libc::POLLOUT as u32).build();
                // SAFETY: names no memory; room was made by the caller.
                unsafe { self.ring.push(entry.user_data(pack(Kind::ConnectPoll, key))) };
                self.slot(key).open = Kind::ConnectPoll;
            }
            Err(Errno(libc::EAGAIN)) if addr.is_unix() => self.unix_retries.push((key, name)),
            Err(errno) => self.finish(key, Op::Connect, Outcome::Failed(errno)),
        }
    }

    /// Tries connects to unix sockets again whose backlog was full.
    pub(super) fn retry_connects(&mut self) {
        for (key, name) in std::mem::take(&mut self.unix_retries) {
            self.syscalls += 1;
            let tried = SockRef::from(self.slot(key).fd.as_ref().expect("kept for the retry")).connect(&name);
            match tried.map_err(|error| Errno::of(&error)) {
                Err(Errno(libc::EAGAIN)) => self.unix_retries.push((key, name)),
                Err(errno) => self.finish(key, Op::Connect, Outcome::Failed(errno)),
                Ok(()) => self.connected_by_call(key),
            }
        }
    }

    fn connected_by_call(&mut self, key: Key) {
        if !self.style.polled {
            // io_uring waits by itself only on blocking sockets.
            self.syscalls += 1;
            let _ = SockRef::from(self.slot(key).fd.as_ref().expect("just connected")).set_nonblocking(false);
        }
        self.finish(key, Op::Connect, Outcome::Count(0));
    }

    /// Room must have been made.
    pub(super) fn push_accept(&mut self, key: Key, kind: Kind) {
        let fd = types::Fd(self.listener(key).raw_fd());
        let flags = libc::SOCK_CLOEXEC;
        let entry = match kind {
            Kind::AcceptPoll => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
            _ if self.style.multishot_accept => opcode::AcceptMulti::new(fd).flags(flags).build(),
            // No address is asked for: whoever wants to know calls getpeername.
            _ => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build(),
        };
        // SAFETY: names no memory.
        unsafe { self.ring.push(entry.user_data(pack(kind, key))) };
        self.listener(key).open = kind;
    }

    /// Room must have been made.
    pub(super) fn push_recv(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        let single = self.style.adaptive_receives && self.slot(key).take(mark::FRESH);
        self.ring.stats.single_receives += u64::from(single);
        let kind = if single { Kind::RecvFirst } else { kind };
        let entry = if kind == Kind::RecvPoll {
            poll_read(fd)
        } else if self.style.multishot_recv && !single {
            opcode::RecvMulti::new(fd, MAIN).build()
        } else if let Some(ring) = self.ring_of(kind) {
            opcode::Recv::new(fd, std::ptr::null_mut(), ring.pool().size())
                .buf_group(ring.group())
                .build()
                .flags(Flags::BUFFER_SELECT)
        } else {
            let Some(buffer) = self.pool.checkout() else {
                return self.finish(key, Op::Recv, Outcome::Failed(Errno(libc::ENOBUFS)));
            };
            self.slot(key).buffer = buffer;
            let (start, len) = self.pool.room(buffer);
            opcode::Recv::new(fd, start.as_ptr(), len).flags(libc::MSG_DONTWAIT).build()
        };
        // SAFETY: the memory is the pool's: a buffer checked out until the completion, or one that the kernel picks from its
        // ring. The pool outlives the ring, or is leaked with it.
        unsafe { self.ring.push(entry.user_data(pack(kind, key))) };
        self.slot(key).recv = kind;
    }

    /// The buffers that a receive of this kind picks from.
    fn ring_of(&self, kind: Kind) -> Option<&BufRing> {
        self.single_shot_ring.as_ref().filter(|_| kind == Kind::RecvFirst).or(self.buf_ring.as_ref())
    }

    /// Room must have been made, and the window be known.
    pub(super) fn push_fill(&mut self, key: Key, kind: Kind) {
        let fd = self.fd_of(key);
        let flags = if self.style.polled { libc::MSG_DONTWAIT } else { 0 };
        let entry = match kind {
            Kind::FillPoll => poll_read(fd),
            _ => {
                let window = self.windows.of(key);
                let len = u32::try_from(window.len).unwrap_or(u32::MAX);
                opcode::Recv::new(fd, window.start, len).flags(flags).build()
            }
        };
        // SAFETY: the engine keeps the window in place until this operation has ended (contract, rule 3).
        unsafe { self.ring.push(entry.user_data(pack(kind, key))) };
        self.slot(key).recv = kind;
    }

    #[inline]
    pub(super) fn send(&mut self, key: Key, queue: &mut SendQueue, zero_copy: bool) -> Result<(), QueueFull> {
        // No MSG_WAITALL: the kernel gives up polling for one operation after 128 partial sends, and lets a worker block for the
        // rest. A few slow readers could hold all workers. A short send is continued by the engine instead.
        let flags = libc::MSG_NOSIGNAL | if self.style.polled { libc::MSG_DONTWAIT } else { 0 };
        let entry = if zero_copy || queue.entries() == 1 || self.gather_max == 1 {
            self.ring.make_room()?;
            let part = queue.gather(1).next().expect("started with something to send");
            let (start, len) = (part.as_ptr(), u32::try_from(part.len()).unwrap_or(1 << 30));
            match zero_copy {
                true => opcode::SendZc::new(self.fd_of(key), start, len).flags(flags).build(),
                false => opcode::Send::new(self.fd_of(key), start, len).flags(flags).build(),
            }
        } else {
            self.gathered(key, queue, flags)?
        };
        // SAFETY: the queue keeps the payloads in place until the completion, or the notification (contract, rule 3). Header and list
        // of a gathered send are in the arena, which keeps them until the entry is submitted.
        unsafe { self.ring.push(entry.user_data(pack(Kind::Send, key))) };
        let slot = self.slot(key);
        slot.stop &= !(1 << Op::Send as u8);
        slot.send = Kind::Send;
        Ok(())
    }

    #[inline(never)]
    fn gathered(&mut self, key: Key, queue: &mut SendQueue, flags: i32) -> Result<Entry, QueueFull> {
        let most = self.ring.make_gather_room(self.gather_max.min(queue.entries()))?;
        let message = self.ring.arena.message(queue.gather(most));
        Ok(opcode::SendMsg::new(self.fd_of(key), message).flags(flags as u32).build())
    }

    /// Tier `polled`: the socket was full.
    pub(super) fn push_send_poll(&mut self, key: Key) {
        let entry = opcode::PollAdd::new(self.fd_of(key), libc::POLLOUT as u32).build();
        // SAFETY: names no memory; room was made by the caller.
        unsafe { self.ring.push(entry.user_data(pack(Kind::SendPoll, key))) };
        self.slot(key).send = Kind::SendPoll;
    }

    /// The next entry of an operation that goes on; if there is no room it waits for the next turn. One that was advised to end
    /// meanwhile ends here.
    pub(super) fn step(&mut self, key: Key, kind: Kind) {
        let op = op_of(kind);
        let slot = if op == Op::Accept { self.listener(key) } else { self.slot(key) };
        if slot.stop & 1 << op as u8 != 0 {
            if op == Op::Recv {
                self.windows.forget(key);
            }
            if kind == Kind::Connect {
                let opening = self.take_opening(key);
                return self.not_opened(&opening, Errno(libc::ECANCELED));
            }
            return self.finish(key, op, Outcome::Failed(Errno(libc::ECANCELED)));
        }
        let room = if kind == Kind::Connect { self.ring.make_connect_room() } else { self.ring.make_room() };
        if room.is_err() {
            self.steps.push_back(Step { key, kind });
            return;
        }
        match kind {
            Kind::Recv | Kind::RecvPoll => self.push_recv(key, kind),
            Kind::Fill | Kind::FillPoll => self.push_fill(key, kind),
            Kind::SendPoll => self.push_send_poll(key),
            Kind::Connect => self.connect_made(key),
            _ => self.push_accept(key, kind),
        }
    }

    pub(super) fn take_steps(&mut self) {
        for _ in 0..self.steps.len() {
            let step = self.steps.pop_front().expect("counted above");
            self.step(step.key, step.kind);
        }
    }

    pub(super) fn cancel_op(&mut self, key: Key, op: Op) -> Result<(), QueueFull> {
        let kind = match op {
            Op::Accept => self.listener(key).open,
            Op::Connect => self.slot(key).open,
            Op::Recv => self.slot(key).recv,
            Op::Send => self.slot(key).send,
            Op::Close | Op::CloseListener | Op::Wake => Kind::Idle,
        };
        if op == Op::Recv && self.slot(key).take(mark::HELD) {
            self.finish(key, op, Outcome::Failed(Errno(libc::ECANCELED)));
            return Ok(());
        }
        let before = self.unix_retries.len();
        self.unix_retries.retain(|(retry, _)| op != Op::Connect || *retry != key);
        if self.unix_retries.len() < before {
            self.finish(key, op, Outcome::Failed(Errno(libc::ECANCELED)));
            return Ok(());
        }
        if kind != Kind::Idle {
            self.ring.make_room()?;
        }
        let slot = if op == Op::Accept { self.listener(key) } else { self.slot(key) };
        slot.stop |= 1 << op as u8;
        if kind == Kind::Idle {
            // Its next step waits for room, and will see the advice; or it has finished and waits to be told.
            return Ok(());
        }
        // By user_data: by descriptor it could hit the next user of the number.
        self.ring.push_cancel(pack(kind, key));
        Ok(())
    }

    fn fd_of(&mut self, key: Key) -> types::Fd {
        types::Fd(self.slot(key).raw_fd())
    }
}

/// The operation of the contract that a kind of entry serves.
pub(super) fn op_of(kind: Kind) -> Op {
    match kind {
        Kind::Socket | Kind::Connect | Kind::ConnectPoll => Op::Connect,
        Kind::Recv | Kind::RecvFirst | Kind::RecvPoll | Kind::Fill | Kind::FillPoll => Op::Recv,
        Kind::Send | Kind::SendPoll => Op::Send,
        Kind::Close => Op::Close,
        Kind::Accept | Kind::AcceptPoll => Op::Accept,
        Kind::CloseListener => Op::CloseListener,
        Kind::Wake | Kind::Timeout | Kind::Cancel | Kind::Idle => Op::Wake,
    }
}

fn poll_read(fd: types::Fd) -> Entry {
    opcode::PollAdd::new(fd, (libc::POLLIN | libc::POLLRDHUP) as u32).build()
}
