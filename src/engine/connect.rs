//! Connecting. Owns: the steps from `connect` to `Connected`, or to the reason of the failure.
//! Invariant: the connection owns the request until the connect is started, then the backend does.

use super::conn::{Conn, Phase, flag};
use super::{Core, Engine, Full};
use crate::backend::{Backend, Connect, OpKind, Operation, Started};
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};
use crate::net::Addr;
use crate::options::ConnectOptions;

impl Engine {
    /// Opens a connection. Returns at once; [`Event::Connected`] or [`Event::Closed`] follows.
    /// Payloads can be queued at once; they are sent when the connection is open.
    ///
    /// # Errors
    /// [`Error::Address`] if no socket can use the address, [`Error::Limit`] at
    /// `Config::connections_max`, [`Error::Closing`]. All errors of the kernel, EMFILE included,
    /// are reported by `Closed`.
    ///
    /// # Backends
    /// If the backlog of a unix listener is full, the connect waits on both backends, until its
    /// timeout.
    ///
    /// What is queued before the next poll is sent as soon as the connection is open, without a
    /// turn in between: on io_uring (Linux 5.19) if it is one payload, by an SQE linked to the
    /// connect; on epoll if the peer is on this machine. `Tuning::early_sends` turns it off.
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
        self.check_usable()?;
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
        self.core.check_room_for_conn()?;
        self.refresh_clock();
        Ok(ConnId(self.core.connect(addr, options)))
    }
}

impl Core {
    /// Stages a connect. The caller has checked the limit.
    fn connect(&mut self, addr: Addr, options: ConnectOptions) -> Key {
        let mut conn =
            Conn::new(Phase::Connecting, options.tag, &options.socket, self.config.idle_timeout);
        if addr.is_local() && !self.config.tuning.zero_copy.includes_local() {
            conn.set(flag::NO_ZERO_COPY);
        }
        conn.set(flag::PEER_ADDR_CHECKED);
        let timeout = options.timeout.or(self.config.connect_timeout);
        conn.put_connect(Box::new(Connect { addr, options, first: None }));
        let key = self.endpoints.insert_conn(conn);
        self.admission.add_conn();
        if let Some(timeout) = timeout {
            let deadline = self.deadline_after(timeout);
            self.set_conn_timer(key, Some(deadline));
        }
        self.stage(key);
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
            let zero_copy_bytes_min = tuning.zero_copy.bytes_min().unwrap_or(usize::MAX);
            connect.first = conn.send.take_early_batch(B::EARLY_PAYLOADS_MAX, zero_copy_bytes_min);
        }
        let has_early_send = connect.first.is_some();
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
        if has_early_send {
            conn.started(OpKind::Send);
        }
        Ok(())
    }

    pub(super) fn connected(&mut self, key: Key, result: Result<(), Errno>, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.ended(OpKind::Connect);
        self.staging.add(conn, key);
        if conn.phase != Phase::Connecting {
            return;
        }
        if let Err(errno) = result {
            conn.replace_reason(connect_failure_kind(errno), Some(errno));
            conn.phase = Phase::Terminating;
            return;
        }
        self.stats.connected += 1;
        conn.phase = Phase::Open;
        conn.free_empty_cold();
        // A `close` during the connect has set a reason, and the linger timer.
        if conn.reason().is_some() {
            conn.phase = Phase::Closing;
        } else {
            self.set_conn_timer(key, None);
            self.start_idle_timer(key);
        }
        self.emit(key, Event::Connected, out);
    }
}

fn connect_failure_kind(errno: Errno) -> CloseKind {
    match errno.0 {
        // ENOENT: a unix path without a socket, so without a listener.
        libc::ECONNREFUSED | libc::ENOENT => CloseKind::Refused,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
            CloseKind::Unreachable
        }
        libc::ETIMEDOUT => CloseKind::ConnectTimedOut,
        _ => CloseKind::ConnectFailed,
    }
}
