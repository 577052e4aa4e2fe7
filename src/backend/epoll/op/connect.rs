//! Connecting. Owns: connect(2), the registration of a new connection, and the retries of connects
//! to unix sockets. Invariant: the first batch of a connect completes exactly once: after
//! `Connected`, or when the send is cancelled. While the connect is pending, the batch is in the
//! slot. Must not know: timeouts.

use super::super::{Completed, EpollBackend, INPUT, INPUT_OUTPUT, Outcome, bit};
use super::canceled;
use crate::backend::{Connect, OpResult, SendBatch, Started};
use crate::error::Errno;
use crate::id::Key;
use crate::net::socket;
use socket2::SockRef;
use std::os::fd::OwnedFd;

/// A connect to a unix socket whose backlog was full (EAGAIN).
#[derive(Debug)]
pub(in super::super) struct ConnectRetry {
    key: Key,
    addr: socket2::SockAddr,
}

impl EpollBackend {
    #[expect(clippy::boxed_local, reason = "the type of Operation::Connect")]
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
                self.complete_connect(key, Err(errno));
                return Started::InFlight;
            }
        };
        let tried = SockRef::from(&fd).connect(&name).map_err(|error| Errno::of(&error));
        let slot = self.slot(key);
        slot.fd = Some(fd);
        match tried {
            Ok(()) => self.register_connected(key),
            Err(Errno(libc::EAGAIN)) if addr.is_unix() => {
                slot.state |= bit::RETRY;
                self.retries.push(ConnectRetry { key, addr: name });
            }
            Err(Errno(libc::EINPROGRESS)) => match slot.send.take_if(|_| addr.is_local()) {
                Some(batch) => self.send_early(key, batch),
                None => self.wait_connected(key),
            },
            Err(errno) => self.complete_connect(key, Err(errno)),
        }
        Started::InFlight
    }

    /// Sends the first batch right after connect(2). On the loopback device the handshake is done
    /// when connect(2) returns, so this saves a wait for writability.
    fn send_early(&mut self, key: Key, mut batch: SendBatch) {
        self.stats.early_sends += 1;
        let fd = self.slot(key).raw_fd();
        match self.send_now(fd, &mut batch) {
            Ok(sent) => {
                let registered = self.register(key, INPUT);
                self.complete(key, Outcome::Connected(registered));
                if registered.is_err() {
                    return self.complete_send(key, batch, canceled());
                }
                if sent < batch.given() {
                    self.mark_blocked(key);
                }
                self.complete_send(key, batch, OpResult::bytes(sent));
            }
            Err(errno) => {
                self.slot(key).send = Some(batch);
                match errno {
                    Errno(libc::EAGAIN) => self.wait_connected(key),
                    errno => self.complete_connect(key, Err(errno)),
                }
            }
        }
    }

    fn wait_connected(&mut self, key: Key) {
        match self.register(key, INPUT_OUTPUT) {
            Ok(()) => self.slot(key).state |= bit::CONNECT,
            Err(errno) => self.complete_connect(key, Err(errno)),
        }
    }

    fn register_connected(&mut self, key: Key) {
        let registered = self.register(key, INPUT);
        self.complete_connect(key, registered);
    }

    /// Completes the connect, and after it the first send.
    fn complete_connect(&mut self, key: Key, result: Result<(), Errno>) {
        self.complete(key, Outcome::Connected(result));
        self.complete_first_send(key, result);
    }

    fn complete_first_send(&mut self, key: Key, connected: Result<(), Errno>) {
        let slot = self.slot(key);
        slot.state &= !bit::SEND;
        if let Some(batch) = slot.send.take() {
            let result = connected.map_or_else(|_| canceled(), |()| OpResult::bytes(0));
            self.complete_send(key, batch, result);
        }
    }

    /// Retries connects to unix sockets whose backlog was full.
    pub(in super::super) fn retry_connects(&mut self) {
        for retry in std::mem::take(&mut self.retries) {
            let key = retry.key;
            self.stats.syscalls += 1;
            let fd = self.slot(key).fd.as_ref().expect("a connect that is retried has a socket");
            let tried = SockRef::from(fd).connect(&retry.addr).map_err(|error| Errno::of(&error));
            if tried == Err(Errno(libc::EAGAIN)) {
                self.retries.push(retry);
                continue;
            }
            self.slot(key).state &= !bit::RETRY;
            match tried {
                Ok(()) => self.register_connected(key),
                Err(errno) => self.complete_connect(key, Err(errno)),
            }
        }
    }

    /// The socket of a pending connect became ready. EPOLLERR or EPOLLHUP report a failure;
    /// SO_ERROR has its error number (connect(2)).
    pub(in super::super) fn finish_connect(&mut self, key: Key) -> Completed<OwnedFd> {
        let slot = self.slot(key);
        slot.state &= !bit::CONNECT;
        let mut result = Ok(());
        if slot.state & bit::HUNG_UP != 0 {
            let failure = socket::take_error(slot.fd.as_ref().expect("a connect has a socket"));
            self.stats.syscalls += 1;
            result = failure.map_or(Ok(()), Err);
        }
        // `done` is empty while the work list is served, so the next completion is that of the
        // first send.
        self.complete_first_send(key, result);
        Completed::last(key, Outcome::Connected(result))
    }

    pub(super) fn cancel_connect(&mut self, key: Key) {
        if self.disarm(key, bit::CONNECT | bit::RETRY) {
            self.retries.retain(|retry| retry.key != key);
            self.complete_connect(key, Err(Errno(libc::ECANCELED)));
        }
    }
}
