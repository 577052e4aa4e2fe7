//! Opening connections. Owns: the way from `connect` to `Connected`, or to the reason why not.

use super::Engine;
use super::conn::{Conn, Phase, flag};
use super::core::Core;
use crate::backend::{Backend, ConnectRequest, Op, Outcome, QueueFull, with_backend};
use crate::buf::SendQueue;
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};
use crate::net::Addr;
use crate::net::socket::{self, Adopted};
use crate::options::{ConnectOptions, ListenOptions, SocketOptions};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// What [`Engine::adopt`] made of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptedId {
    /// It was a connected stream.
    Conn(ConnId),
    /// It was a listener.
    Listener(crate::ListenerId),
}

impl Engine {
    /// Opens a connection. Returns at once; what comes of it is [`Event::Connected`] or [`Event::Closed`]. Sends queued in the
    /// meantime wait behind the connect.
    ///
    /// # Errors
    /// An address that no socket can use, [`Error::Limit`] at `Config::connections_max`, [`Error::Draining`]. Whatever
    /// the kernel has against it, EMFILE included, arrives as `Closed`.
    ///
    /// # Backends
    /// A unix socket whose listener's backlog is full makes the connect wait on both backends, until its timeout.
    ///
    /// What is queued before the next poll leaves as soon as the connection is there, without a turn in between: on io_uring (5.19) if it
    /// is one payload, by an entry linked to the connect; on epoll if the peer is on this machine. `Config::early_sends` turns it off.
    pub fn connect(&mut self, addr: impl Into<Addr>, options: ConnectOptions) -> Result<ConnId, Error> {
        self.check()?;
        let addr = addr.into();
        if addr.is_unix() {
            addr.to_sockaddr()?;
        }
        if let (Some(local), Addr::Inet(remote)) = (options.local, &addr)
            && local.is_ipv4() != remote.is_ipv4()
        {
            let why = "the local address is of another family than the peer's";
            return Err(Error::Address { addr: local.to_string(), why });
        }
        if options.local.is_some() && addr.is_unix() {
            return Err(Error::Address {
                addr: addr.to_string(),
                why: "a unix socket takes no local internet address",
            });
        }
        self.core.room_for_conn()?;
        let mut conn = Conn::new(Phase::Connecting, options.tag, &options.socket, self.core.config.idle_timeout);
        if addr.is_local() && !self.core.config.zero_copy_anywhere {
            conn.set(flag::NO_ZERO_COPY);
        }
        conn.set(flag::PEER_KNOWN);
        let timeout = options.timeout.or(self.core.config.connect_timeout);
        conn.cold().request = Some(ConnectRequest { addr, options });
        let key = self.core.conns.insert(conn);
        self.core.live += 1;
        if let Some(timeout) = timeout {
            self.refresh_clock();
            let deadline = self.core.later(timeout);
            self.core.set_conn_timer(key, Some(deadline));
        }
        self.core.mark_dirty(key);
        Ok(ConnId(key))
    }

    /// Takes over a descriptor: a connected stream socket (one end of a socketpair, one passed by another process), or a
    /// listener (socket activation). A stream is open at once, without `Connected`.
    ///
    /// # Errors
    /// No stream socket, or neither connected nor listening; the limits of `connect` and `listen`. The descriptor is closed then.
    pub fn adopt(&mut self, fd: OwnedFd, options: SocketOptions) -> Result<AdoptedId, Error> {
        self.check()?;
        match socket::adopt(&fd, self.wants_nonblocking())? {
            Adopted::Stream => {
                self.core.room_for_conn()?;
                let conn = Conn::new(Phase::Open, 0, &options, self.core.config.idle_timeout);
                let key = self.core.conns.insert(conn);
                let attached = with_backend!(&mut *self.backend, backend => {
                    backend.adopt(fd).and_then(|socket| {
                        backend.attach(key, socket).map_err(|errno| Error::Os { call: "epoll_ctl", errno })
                    })
                });
                if let Err(error) = attached {
                    self.core.conns.remove(key);
                    return Err(error);
                }
                self.core.live += 1;
                self.refresh_clock();
                self.core.start_idle_timer(key);
                self.core.mark_dirty(key);
                Ok(AdoptedId::Conn(ConnId(key)))
            }
            Adopted::Listener => {
                let options = ListenOptions { socket: options, ..ListenOptions::default() };
                let key = self.core.room_for_listener(Rc::new(options))?;
                let attached = with_backend!(&mut *self.backend, backend => backend.attach_listener(key, fd));
                if let Err(error) = attached {
                    self.core.listeners.remove(key);
                    return Err(error);
                }
                self.core.mark_listener_dirty(key);
                Ok(AdoptedId::Listener(crate::ListenerId(key)))
            }
        }
    }

    /// Gives the descriptor of a quiet connection back. Quiet means: reads are paused, nothing is queued or in flight, and nothing
    /// received waits to be delivered. The id is stale afterwards, and there is no `Closed`.
    ///
    /// # Errors
    /// [`Error::State`] while it is not quiet: pause reads, poll, and try again.
    ///
    /// # Backends
    /// The descriptor is blocking on io_uring and non-blocking on epoll. The simulated backend has none to give, and answers
    /// [`Error::Unsupported`]; so it does to `adopt`.
    pub fn release(&mut self, id: ConnId) -> Result<OwnedFd, Error> {
        let conn = self.own()?.conn(id.0)?;
        let busy = conn.ops != 0 || !conn.queue_is_empty() || conn.owes_notices() || conn.is_filling();
        if conn.phase != Phase::Open || busy || conn.has_stash() || conn.deferred > 0 {
            return Err(Error::State(
                "the connection is not quiet: pause reads, let sends finish, poll, and try again",
            ));
        }
        let fd = with_backend!(&mut *self.backend, backend => backend.release(id.0))?;
        self.core.set_conn_timer(id.0, None);
        self.core.recycle_queue(id.0);
        self.core.conns.remove(id.0);
        self.core.live -= 1;
        Ok(fd)
    }
}

impl Core {
    pub(super) fn room_for_conn(&self) -> Result<(), Error> {
        if self.draining {
            return Err(Error::Draining);
        }
        if self.conns.is_full() {
            return Err(Error::Limit { limit: "connections_max", value: self.conns.limit() });
        }
        Ok(())
    }

    pub(super) fn service_connect<B: Backend>(&mut self, backend: &mut B, key: Key) -> Result<(), QueueFull> {
        let conn = self.conns.get_mut(key).expect("serviced while live");
        if conn.in_flight(Op::Connect) {
            return Ok(());
        }
        let Some(request) = conn.cold.as_ref().and_then(|cold| cold.request.as_ref()) else { return Ok(()) };
        let small = 1..self.config.zero_copy_threshold.unwrap_or(usize::MAX);
        let leaves = |queue: &&mut SendQueue| self.config.early_sends && small.contains(&queue.front_len());
        let first = conn.queue.as_deref_mut().filter(leaves);
        let sends = backend.start_connect(key, request, first)?;
        conn.started(Op::Connect);
        if sends {
            conn.started(Op::Send);
            self.stats.early_sends += 1;
        }
        Ok(())
    }

    pub(super) fn on_connect<S>(&mut self, key: Key, outcome: Outcome<S>, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.ended(Op::Connect);
        conn.cold().request = None;
        self.mark_dirty(key);
        let conn = self.conns.get_mut(key).expect("just seen");
        if conn.phase != Phase::Connecting {
            return;
        }
        match outcome {
            Outcome::Failed(errno) => {
                conn.replace_reason(connect_failure(errno), Some(errno));
                conn.phase = Phase::Terminating;
            }
            _ => {
                self.stats.connected += 1;
                conn.phase = Phase::Open;
                conn.shed_cold();
                // `close` during the connect set a reason and the linger deadline.
                let closing = conn.cold.as_ref().is_some_and(|cold| cold.reason.is_some());
                if closing {
                    conn.phase = Phase::Closing;
                } else {
                    self.set_conn_timer(key, None);
                    self.start_idle_timer(key);
                }
                self.emit(key, Event::Connected, out);
            }
        }
    }
}

fn connect_failure(errno: Errno) -> CloseKind {
    match errno.0 {
        // A unix path without a socket is as good as nobody listening.
        libc::ECONNREFUSED | libc::ENOENT => CloseKind::Refused,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => CloseKind::Unreachable,
        libc::ETIMEDOUT => CloseKind::ConnectTimedOut,
        _ => CloseKind::ConnectFailed,
    }
}
