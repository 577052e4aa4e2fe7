//! Opening connections. Owns: the way from `connect` to `Connected`, or to the reason why not.
//! Invariant: the request is with the connection, or with the one connect in flight.

use super::conn::{Conn, Phase, flag};
use super::{Core, Engine, Full};
use crate::backend::{Backend, Connect, OpKind, Operation, Started};
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};
use crate::net::Addr;
use crate::options::ConnectOptions;

impl Engine {
    /// Opens a connection. Returns at once; what comes of it is [`Event::Connected`] or
    /// [`Event::Closed`]. Sends queued in the meantime wait behind the connect.
    ///
    /// # Errors
    /// An address that no socket can use, [`Error::Limit`] at `Config::connections_max`,
    /// [`Error::Closing`]. Whatever the kernel has against it, EMFILE included, arrives as
    /// `Closed`.
    ///
    /// # Backends
    /// A unix socket whose listener's backlog is full makes the connect wait on both backends,
    /// until its timeout.
    ///
    /// What is queued before the next poll leaves as soon as the connection is there, without a
    /// turn in between: on io_uring (5.19) if it is one payload, by an entry linked to the connect;
    /// on epoll if the peer is on this machine. `Tuning::early_sends` turns it off.
    ///
    /// ```
    /// use proactor::{CloseKind, Completions, Config, ConnectOptions, Engine, Event};
    /// let mut engine = Engine::new(Config::default())?;
    /// let mut completions = Completions::with_capacity(16);
    /// let addr = proactor::Addr::UnixAbstract(b"no-listener-has-this-name".to_vec());
    /// engine.connect(addr, ConnectOptions::default())?; // returns immediately
    /// engine.poll(&mut completions, None)?;
    /// let event = completions.pop().map(|completion| completion.event);
    /// assert!(matches!(event, Some(Event::Closed(reason)) if reason.kind == CloseKind::Refused));
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn connect(
        &mut self,
        addr: impl Into<Addr>,
        options: ConnectOptions,
    ) -> Result<ConnId, Error> {
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
        self.refresh_clock();
        Ok(ConnId(self.core.connect(addr, options)))
    }
}

impl Core {
    /// There must be room.
    fn connect(&mut self, addr: Addr, options: ConnectOptions) -> Key {
        let mut conn =
            Conn::new(Phase::Connecting, options.tag, &options.socket, self.config.idle_timeout);
        if addr.is_local() && !self.config.tuning.zero_copy.includes_local() {
            conn.set(flag::NO_ZERO_COPY);
        }
        conn.set(flag::PEER_KNOWN);
        let timeout = options.timeout.or(self.config.connect_timeout);
        conn.put_connect(Box::new(Connect { addr, options, first: None }));
        let key = self.endpoints.insert_conn(conn);
        self.admission.came();
        if let Some(timeout) = timeout {
            let deadline = self.later(timeout);
            self.set_conn_timer(key, Some(deadline));
        }
        self.mark_dirty(key);
        key
    }

    pub(super) fn service_connect<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
    ) -> Result<(), Full> {
        let Some(conn) = self.endpoints.conn_mut(key) else { return Ok(()) };
        let Some(mut connect) = conn.take_connect() else { return Ok(()) };
        let tuning = &self.config.tuning;
        if tuning.early_sends {
            let least_zero_copy = tuning.zero_copy.bytes_min().unwrap_or(usize::MAX);
            connect.first = conn.send.take_early(B::EARLY_PAYLOADS, least_zero_copy);
        }
        let sends = connect.first.is_some();
        match backend.start(key, Operation::Connect(connect)) {
            Started::NoRoom(Operation::Connect(mut connect)) => {
                if let Some(batch) = connect.first.take() {
                    conn.send.put_back(batch, &mut self.send_memory);
                }
                conn.put_connect(connect);
                return Err(Full);
            }
            Started::InFlight | Started::Done | Started::Sent(..) | Started::NoRoom(_) => {}
        }
        conn.started(OpKind::Connect);
        if sends {
            conn.started(OpKind::Send);
        }
        Ok(())
    }

    pub(super) fn connected(&mut self, key: Key, result: Result<(), Errno>, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.ended(OpKind::Connect);
        self.staging.mark(conn, key);
        if conn.phase != Phase::Connecting {
            return;
        }
        if let Err(errno) = result {
            conn.replace_reason(connect_failure(errno), Some(errno));
            conn.phase = Phase::Terminating;
            return;
        }
        self.stats.connected += 1;
        conn.phase = Phase::Open;
        conn.shed_cold();
        // `close` during the connect set a reason and the linger deadline.
        if conn.reason().is_some() {
            conn.phase = Phase::Closing;
        } else {
            self.set_conn_timer(key, None);
            self.start_idle_timer(key);
        }
        self.emit(key, Event::Connected, out);
    }
}

fn connect_failure(errno: Errno) -> CloseKind {
    match errno.0 {
        // A unix path without a socket is as good as nobody listening.
        libc::ECONNREFUSED | libc::ENOENT => CloseKind::Refused,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
            CloseKind::Unreachable
        }
        libc::ETIMEDOUT => CloseKind::ConnectTimedOut,
        _ => CloseKind::ConnectFailed,
    }
}
