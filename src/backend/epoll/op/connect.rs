//! Connecting. Owns: the way from a socket to a registered connection, and the connects that try
//! again. Invariant: a batch that was given along comes back exactly once: behind `Connected`, or
//! by the cancel of the send. While the connect is pending it lies in the slot. Must not know:
//! timeouts.

use super::super::{BOTH, Completed, EpollBackend, INPUT, Outcome, bit};
use super::canceled;
use crate::backend::{Connect, OpResult, SendBatch, Started};
use crate::error::Errno;
use crate::id::Key;
use crate::net::socket;
use socket2::SockRef;
use std::os::fd::OwnedFd;

/// A connect to a unix socket whose backlog was full.
#[derive(Debug)]
pub(in super::super) struct Retry {
    key: Key,
    addr: socket2::SockAddr,
}

impl EpollBackend {
    #[expect(clippy::boxed_local, reason = "the operation has it so")]
    pub(in super::super) fn start_connect(&mut self, key: Key, connect: Box<Connect>) -> Started {
        self.occupy(key, None);
        let Connect { addr, options, first } = *connect;
        self.slot(key).send = first;
        self.stats.syscalls += 3;
        let made = socket::connecting(&addr, options.local, &options.socket, true)
            .and_then(|fd| Ok((fd, addr.to_sockaddr().map_err(|_| Errno(libc::EINVAL))?)));
        let (fd, name) = match made {
            Ok(pair) => pair,
            Err(errno) => {
                self.end_connect(key, Err(errno));
                return Started::InFlight;
            }
        };
        let tried = SockRef::from(&fd).connect(&name).map_err(|error| Errno::of(&error));
        let slot = self.slot(key);
        slot.fd = Some(fd);
        match tried {
            Ok(()) => self.establish(key),
            Err(Errno(libc::EAGAIN)) if addr.is_unix() => {
                slot.state |= bit::RETRY;
                self.retries.push(Retry { key, addr: name });
            }
            Err(Errno(libc::EINPROGRESS)) => match slot.send.take_if(|_| addr.is_local()) {
                Some(batch) => self.send_along(key, batch),
                None => self.await_connect(key),
            },
            Err(errno) => self.end_connect(key, Err(errno)),
        }
        Started::InFlight
    }

    /// Through the loopback device the peer has answered before connect(2) returns. Then the first
    /// send goes at once, and nobody has to wait until the socket is writable.
    fn send_along(&mut self, key: Key, mut batch: SendBatch) {
        self.stats.early_sends += 1;
        let fd = self.slot(key).raw_fd();
        match self.try_send(fd, &mut batch) {
            Ok(sent) => {
                let registered = self.register(key, INPUT);
                self.complete(key, Outcome::Connected(registered));
                if registered.is_err() {
                    return self.complete_send(key, batch, canceled());
                }
                if sent < batch.given() {
                    self.block(key);
                }
                self.complete_send(key, batch, OpResult::bytes(sent));
            }
            Err(errno) => {
                self.slot(key).send = Some(batch);
                match errno {
                    Errno(libc::EAGAIN) => self.await_connect(key),
                    errno => self.end_connect(key, Err(errno)),
                }
            }
        }
    }

    fn await_connect(&mut self, key: Key) {
        match self.register(key, BOTH) {
            Ok(()) => self.slot(key).state |= bit::CONNECT,
            Err(errno) => self.end_connect(key, Err(errno)),
        }
    }

    fn establish(&mut self, key: Key) {
        let registered = self.register(key, INPUT);
        self.end_connect(key, registered);
    }

    /// Completes the connect, and behind it what was given along.
    fn end_connect(&mut self, key: Key, result: Result<(), Errno>) {
        self.complete(key, Outcome::Connected(result));
        self.return_first(key, result);
    }

    fn return_first(&mut self, key: Key, connected: Result<(), Errno>) {
        let slot = self.slot(key);
        slot.state &= !bit::SEND;
        if let Some(batch) = slot.send.take() {
            let result = connected.map_or_else(|_| canceled(), |()| OpResult::bytes(0));
            self.complete_send(key, batch, result);
        }
    }

    /// Tries connects to unix sockets again whose backlog was full.
    pub(in super::super) fn retry_connects(&mut self) {
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
                Ok(()) => self.establish(key),
                Err(errno) => self.end_connect(key, Err(errno)),
            }
        }
    }

    /// The socket of a pending connect became ready. A failure comes with EPOLLERR or EPOLLHUP, and
    /// the pending error says why.
    pub(in super::super) fn connected(&mut self, key: Key) -> Completed<OwnedFd> {
        let slot = self.slot(key);
        slot.state &= !bit::CONNECT;
        let mut result = Ok(());
        if slot.state & bit::HUNG_UP != 0 {
            let failure = socket::take_error(slot.fd.as_ref().expect("a connect has a socket"));
            self.stats.syscalls += 1;
            result = failure.map_or(Ok(()), Err);
        }
        // Nothing else is queued while slots work, so this is what `next` hands out then.
        self.return_first(key, result);
        Completed::last(key, Outcome::Connected(result))
    }

    pub(super) fn cancel_connect(&mut self, key: Key) {
        if self.disarm(key, bit::CONNECT | bit::RETRY) {
            self.retries.retain(|retry| retry.key != key);
            self.end_connect(key, Err(Errno(libc::ECANCELED)));
        }
    }
}
