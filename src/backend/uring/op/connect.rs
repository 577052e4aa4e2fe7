//! Connect: SOCKET and CONNECT (5.19), with the first send linked; socket(2) and CONNECT on older
//! kernels; connect(2) in tier `polled` and for unix sockets. Owns: its SQEs, the meaning of their
//! CQEs, and the request until the CONNECT is staged. Invariant: each connect ends with one
//! `Connected`, and then the batch that came with it ends with one `Sent`.

use super::{CANCELED, sqe_len, status};
use crate::backend::uring::Uring;
use crate::backend::uring::ring::QueueFull;
use crate::backend::uring::slot::flag;
use crate::backend::uring::sqe::{PlainSqe, owned_fd};
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Connect, OpKind, Operation, Outcome, Started};
use crate::buf::InFlight;
use crate::error::Errno;
use crate::id::Key;
use crate::net::socket;
use io_uring::opcode;
use io_uring::squeue::Flags;
use socket2::{SockAddr, SockRef};

/// The delay before a connect to a unix listener with a full backlog is tried again.
pub(in crate::backend::uring) const UNIX_RETRY_NS: u64 = 2_000_000;

/// Connects with a SOCKET in flight, indexed by slot. Grows to the highest slot that had one.
#[derive(Debug, Default)]
pub(in crate::backend::uring) struct PendingConnects(Vec<Option<Box<Connect>>>);

/// A connect to a unix listener whose backlog was full.
#[derive(Debug)]
pub(in crate::backend::uring) struct UnixRetry {
    key: Key,
    addr: SockAddr,
}

impl Uring {
    pub(in crate::backend::uring) fn start_connect(
        &mut self,
        key: Key,
        connect: Box<Connect>,
    ) -> Started {
        let by_syscall = self.features.polled || connect.addr.is_unix();
        let by_sqes = self.features.socket_op && !by_syscall;
        let room = if by_sqes { self.ring.make_room() } else { self.ring.make_connect_room() };
        if let Err(QueueFull) = room {
            return Started::NoRoom(Operation::Connect(connect));
        }
        self.open_slot(key, None);
        self.slot(key).clear_cancel(OpKind::Connect);
        let mut connect = connect;
        if let Some(mut batch) = connect.first.take() {
            let given = sqe_len(batch.front_len()) as usize;
            batch.set_given(given);
            let slot = self.slot(key);
            slot.batch = Some(InFlight::new(batch));
            slot.set(flag::EARLY_BATCH, true);
        }
        match by_sqes {
            true => self.push_socket(key, connect),
            false => self.connect_with_socket_call(key, &connect, by_syscall),
        }
        Started::InFlight
    }

    /// The first of two SQEs: SOCKET. With hundreds of connects in flight, two SQEs cost less than
    /// socket(2) and one SQE. Call `Ring::make_room` first.
    fn push_socket(&mut self, key: Key, connect: Box<Connect>) {
        self.ring
            .push_plain(PlainSqe::socket(connect.addr.domain().into()), pack(Kind::Socket, key));
        self.slot(key).open = Kind::Socket;
        let connects = &mut self.connects.0;
        if connects.len() <= key.slot() {
            connects.resize_with(key.slot() + 1, || None);
        }
        connects[key.slot()] = Some(connect);
    }

    /// SOCKET completed: CONNECT is next.
    pub(in crate::backend::uring) fn socket_completed(&mut self, key: Key, result: i32) {
        match owned_fd(result) {
            Some(fd) => {
                self.slot(key).fd = Some(fd);
                self.continue_op(key, Kind::Connect);
            }
            None => self.connect_completed(key, status(result)),
        }
    }

    /// The second SQE: CONNECT. The first send is linked to it, so that it starts as soon as the
    /// handshake completes. Call `Ring::make_connect_room` first.
    pub(super) fn push_connect_with_send(&mut self, key: Key) {
        let Some(connect) = self.connects.0.get_mut(key.slot()).and_then(Option::take) else {
            return;
        };
        self.stats.syscalls += 1;
        let Some(fd) = &self.slot(key).fd else { return };
        let set_up =
            socket::set_up(fd, &connect.addr, connect.options.local, &connect.options.socket);
        match set_up.and_then(|()| connect.addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))) {
            Ok(addr) => {
                let has_batch = self.slot(key).has(flag::EARLY_BATCH);
                let flags = if has_batch { Flags::IO_LINK } else { Flags::empty() };
                self.push_connect(key, addr, flags);
                if has_batch {
                    self.push_linked_send(key);
                }
            }
            Err(errno) => self.connect_completed(key, Err(errno)),
        }
    }

    fn connect_with_socket_call(&mut self, key: Key, connect: &Connect, by_syscall: bool) {
        let options = &connect.options;
        self.stats.syscalls += 2;
        let socket = socket::connecting(&connect.addr, options.local, &options.socket, by_syscall);
        let socket = socket
            .and_then(|fd| Ok((fd, connect.addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))?)));
        match socket {
            Ok((fd, addr)) => {
                self.slot(key).fd = Some(fd);
                match by_syscall {
                    true => self.connect_by_syscall(key, connect.addr.is_unix(), addr),
                    false => self.push_connect(key, addr, Flags::empty()),
                }
            }
            Err(errno) => self.connect_completed(key, Err(errno)),
        }
    }

    /// Call `Ring::make_connect_room` first.
    fn push_connect(&mut self, key: Key, addr: SockAddr, flags: Flags) {
        let (addr, len) = self.ring.arena.addr(addr);
        let sqe = opcode::Connect::new(self.fd_of(key), addr, len).build().flags(flags);
        // SAFETY: the address is in the arena, which keeps it until the SQE is submitted.
        unsafe { self.ring.push(sqe.user_data(pack(Kind::Connect, key))) };
        let slot = self.slot(key);
        slot.open = Kind::Connect;
        slot.set(flag::NOTHING_SENT, true);
    }

    /// connect(2) on a non-blocking socket. In tier `polled`, because CONNECT on 5.6 occupies a
    /// kernel worker until the peer answers. For unix sockets, because CONNECT occupies a worker on
    /// every kernel while the listener's backlog is full; otherwise connect(2) completes at once.
    fn connect_by_syscall(&mut self, key: Key, unix: bool, addr: SockAddr) {
        match self.try_connect(key, &addr) {
            Ok(()) => self.connected_by_syscall(key),
            Err(Errno(libc::EINPROGRESS)) => {
                let sqe = PlainSqe::poll(self.fd_of(key), libc::POLLOUT);
                self.ring.push_plain(sqe, pack(Kind::ConnectPoll, key));
                self.slot(key).open = Kind::ConnectPoll;
            }
            Err(Errno(libc::EAGAIN)) if unix => self.unix_retries.push(UnixRetry { key, addr }),
            Err(errno) => self.connect_completed(key, Err(errno)),
        }
    }

    fn try_connect(&mut self, key: Key, addr: &SockAddr) -> Result<(), Errno> {
        self.stats.syscalls += 1;
        let fd = self.find_slot(key).and_then(|slot| slot.fd.as_ref()).ok_or(CANCELED)?;
        SockRef::from(fd).connect(addr).map_err(|error| Errno::of(&error))
    }

    /// Tries the connects to unix listeners with a full backlog again.
    pub(in crate::backend::uring) fn retry_connects(&mut self) {
        for retry in std::mem::take(&mut self.unix_retries) {
            match self.try_connect(retry.key, &retry.addr) {
                Err(Errno(libc::EAGAIN)) => self.unix_retries.push(retry),
                Err(errno) => self.connect_completed(retry.key, Err(errno)),
                Ok(()) => self.connected_by_syscall(retry.key),
            }
        }
    }

    /// Removes a cancelled connect from the retries. True if it was there.
    pub(super) fn remove_retry(&mut self, key: Key) -> bool {
        let before = self.unix_retries.len();
        self.unix_retries.retain(|retry| retry.key != key);
        self.unix_retries.len() < before
    }

    fn connected_by_syscall(&mut self, key: Key) {
        if !self.features.polled {
            // io_uring polls by itself only on blocking sockets.
            self.stats.syscalls += 1;
            if let Some(fd) = &self.slot(key).fd {
                let _ = SockRef::from(fd).set_nonblocking(false);
            }
        }
        self.connect_completed(key, Ok(()));
    }

    /// The poll completed: the socket is connected, or the connect failed.
    pub(in crate::backend::uring) fn connect_polled(&mut self, key: Key, result: i32) {
        self.stats.syscalls += 1;
        let failure = self.slot(key).fd.as_ref().and_then(socket::take_error);
        self.connect_completed(key, status(result).and(failure.map_or(Ok(()), Err)));
    }

    pub(in crate::backend::uring) fn connect_completed(
        &mut self,
        key: Key,
        result: Result<(), Errno>,
    ) {
        if let Some(connect) = self.connects.0.get_mut(key.slot()) {
            *connect = None;
        }
        self.complete(key, Outcome::Connected(result));
        self.return_early_batch(key, result.is_ok());
    }
}
