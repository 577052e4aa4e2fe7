//! Connecting: SOCKET and CONNECT (5.19), with the first send linked to it; CONNECT alone on older
//! kernels; connect(2) in tier `polled` and for unix sockets. Owns: its steps, what their
//! completions mean, and the request meanwhile. Invariant: each connect ends with one `Connected`,
//! and the batch that came with it is given back behind that, once.

use super::{CANCELED, entry_len, status};
use crate::backend::uring::Uring;
use crate::backend::uring::entry::{Plain, descriptor};
use crate::backend::uring::ring::QueueFull;
use crate::backend::uring::slot::mark;
use crate::backend::uring::token::{Kind, pack};
use crate::backend::{Connect, OpKind, Operation, Outcome, Started};
use crate::buf::InFlight;
use crate::error::Errno;
use crate::id::Key;
use crate::net::socket;
use io_uring::opcode;
use io_uring::squeue::Flags;
use socket2::{SockAddr, SockRef};

/// How long a connect to a unix socket with a full backlog waits before it tries again.
pub(in crate::backend::uring) const UNIX_RETRY_NS: u64 = 2_000_000;

/// Connects whose socket is being made, by slot: as long as the highest slot that ever had one.
#[derive(Debug, Default)]
pub(in crate::backend::uring) struct Connects(Vec<Option<Box<Connect>>>);

/// A unix connect that found the backlog full.
#[derive(Debug)]
pub(in crate::backend::uring) struct UnixRetry {
    key: Key,
    name: SockAddr,
}

impl Uring {
    pub(in crate::backend::uring) fn start_connect(
        &mut self,
        key: Key,
        connect: Box<Connect>,
    ) -> Started {
        let by_call = self.style.polled || connect.addr.is_unix();
        let by_entries = self.style.socket_op && !by_call;
        let room = if by_entries { self.ring.make_room() } else { self.ring.make_connect_room() };
        if let Err(QueueFull) = room {
            return Started::NoRoom(Operation::Connect(connect));
        }
        self.occupy(key, None);
        self.slot(key).unstop(OpKind::Connect);
        let mut connect = connect;
        if let Some(mut batch) = connect.first.take() {
            let given = entry_len(batch.front_len()) as usize;
            batch.set_given(given);
            let slot = self.slot(key);
            slot.batch = Some(InFlight::new(batch));
            slot.set(mark::EARLY, true);
        }
        match by_entries {
            true => self.push_socket(key, connect),
            false => self.connect_made_here(key, &connect, by_call),
        }
        Started::InFlight
    }

    /// A connect in two entries: the socket first. With hundreds of connects under way both cost
    /// less than one entry and a call. Room must have been made.
    fn push_socket(&mut self, key: Key, connect: Box<Connect>) {
        self.ring.push_plain(Plain::socket(connect.addr.domain().into()), pack(Kind::Socket, key));
        self.slot(key).open = Kind::Socket;
        let connects = &mut self.connects.0;
        if connects.len() <= key.slot() {
            connects.resize_with(key.slot() + 1, || None);
        }
        connects[key.slot()] = Some(connect);
    }

    /// The first entry is done: the socket is there.
    pub(in crate::backend::uring) fn socket_made(&mut self, key: Key, result: i32) {
        match descriptor(result) {
            Some(fd) => {
                self.slot(key).fd = Some(fd);
                self.step(key, Kind::Connect);
            }
            None => self.connect_ended(key, status(result)),
        }
    }

    /// The second entry, and the first send linked to it, so that the request leaves with the end
    /// of the handshake. Room for both must have been made.
    pub(super) fn connect_made_socket(&mut self, key: Key) {
        let Some(connect) = self.connects.0.get_mut(key.slot()).and_then(Option::take) else {
            return;
        };
        self.stats.syscalls += 1;
        let Some(fd) = &self.slot(key).fd else { return };
        let ready =
            socket::set_up(fd, &connect.addr, connect.options.local, &connect.options.socket);
        match ready.and_then(|()| connect.addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))) {
            Ok(name) => {
                let sends = self.slot(key).has(mark::EARLY);
                self.push_connect(key, name, if sends { Flags::IO_LINK } else { Flags::empty() });
                if sends {
                    self.push_linked_send(key);
                }
            }
            Err(errno) => self.connect_ended(key, Err(errno)),
        }
    }

    fn connect_made_here(&mut self, key: Key, connect: &Connect, by_call: bool) {
        let options = &connect.options;
        self.stats.syscalls += 2;
        let made = socket::connecting(&connect.addr, options.local, &options.socket, by_call);
        let made = made
            .and_then(|fd| Ok((fd, connect.addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))?)));
        match made {
            Ok((fd, name)) => {
                self.slot(key).fd = Some(fd);
                match by_call {
                    true => self.connect_by_call(key, connect.addr.is_unix(), name),
                    false => self.push_connect(key, name, Flags::empty()),
                }
            }
            Err(errno) => self.connect_ended(key, Err(errno)),
        }
    }

    /// Room for an entry and an address must have been made.
    fn push_connect(&mut self, key: Key, name: SockAddr, flags: Flags) {
        let (addr, len) = self.ring.arena.addr(name);
        let entry = opcode::Connect::new(self.fd_of(key), addr, len).build().flags(flags);
        // SAFETY: the address is in the arena, which keeps it until the entry is submitted.
        unsafe { self.ring.push(entry.user_data(pack(Kind::Connect, key))) };
        let slot = self.slot(key);
        slot.open = Kind::Connect;
        slot.set(mark::UNUSED, true);
    }

    /// Tier `polled`: a CONNECT entry of 5.6 would tie up a worker until the peer answers. Unix
    /// sockets: one whose listener's backlog is full would do so on every kernel, and without that
    /// connect(2) never waits.
    fn connect_by_call(&mut self, key: Key, unix: bool, name: SockAddr) {
        match self.try_connect(key, &name) {
            Ok(()) => self.connected_by_call(key),
            Err(Errno(libc::EINPROGRESS)) => {
                let entry = Plain::poll(self.fd_of(key), libc::POLLOUT);
                self.ring.push_plain(entry, pack(Kind::ConnectPoll, key));
                self.slot(key).open = Kind::ConnectPoll;
            }
            Err(Errno(libc::EAGAIN)) if unix => self.unix_retries.push(UnixRetry { key, name }),
            Err(errno) => self.connect_ended(key, Err(errno)),
        }
    }

    fn try_connect(&mut self, key: Key, name: &SockAddr) -> Result<(), Errno> {
        self.stats.syscalls += 1;
        let fd = self.known(key).and_then(|slot| slot.fd.as_ref()).ok_or(CANCELED)?;
        SockRef::from(fd).connect(name).map_err(|error| Errno::of(&error))
    }

    /// Tries connects to unix sockets again whose backlog was full.
    pub(in crate::backend::uring) fn retry_connects(&mut self) {
        for retry in std::mem::take(&mut self.unix_retries) {
            match self.try_connect(retry.key, &retry.name) {
                Err(Errno(libc::EAGAIN)) => self.unix_retries.push(retry),
                Err(errno) => self.connect_ended(retry.key, Err(errno)),
                Ok(()) => self.connected_by_call(retry.key),
            }
        }
    }

    /// A cancelled connect is not tried again. True if it waited for that.
    pub(super) fn forget_retry(&mut self, key: Key) -> bool {
        let before = self.unix_retries.len();
        self.unix_retries.retain(|retry| retry.key != key);
        self.unix_retries.len() < before
    }

    fn connected_by_call(&mut self, key: Key) {
        if !self.style.polled {
            // io_uring waits by itself only on blocking sockets.
            self.stats.syscalls += 1;
            if let Some(fd) = &self.slot(key).fd {
                let _ = SockRef::from(fd).set_nonblocking(false);
            }
        }
        self.connect_ended(key, Ok(()));
    }

    /// Tier `polled`: the socket became writable, or failed.
    pub(in crate::backend::uring) fn connect_polled(&mut self, key: Key, result: i32) {
        self.stats.syscalls += 1;
        let failure = self.slot(key).fd.as_ref().and_then(socket::take_error);
        self.connect_ended(key, status(result).and(failure.map_or(Ok(()), Err)));
    }

    pub(in crate::backend::uring) fn connect_ended(&mut self, key: Key, result: Result<(), Errno>) {
        if let Some(connect) = self.connects.0.get_mut(key.slot()) {
            *connect = None;
        }
        self.finish(key, Outcome::Connected(result));
        self.early_batch_back(key, result.is_ok());
    }
}
