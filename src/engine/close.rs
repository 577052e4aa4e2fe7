//! Closing connections. Owns: the steps from `close`, `abort` or a failure to `Closed`. Invariant:
//! each connection passes [`Core::end_conn`] once; a close starts when no other operation of the
//! connection is in flight.
//!
//! ```text
//! close:  send the queue -> FIN -> discard input until the peer's FIN, at most fin_wait
//!         -> cancel what is in flight -> close
//! abort:  cancel what is in flight -> reset
//! ```

use super::conn::{Phase, flag};
use super::{Core, Engine, Full};
use crate::backend::{Backend, OpKind, Operation, Started};
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};
use std::time::Duration;

impl Engine {
    /// Closes a connection gracefully: sends what is queued, then the FIN. Input is discarded from
    /// now on. If the kernel has not taken all queued bytes within `Config::linger`, the connection
    /// is reset. [`Event::Closed`] follows. Closing a connection twice is no error.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// drop(theirs);
    /// engine.close(conn)?;
    /// while engine.is_live(conn) {
    ///     engine.poll(&mut completions, None)?;
    /// }
    /// let last = completions.drain().last();
    /// assert!(matches!(last.unwrap().event, Event::Closed(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&mut self, id: ConnId) -> Result<(), Error> {
        let conn = self.core_mut()?.conn_mut(id.0)?;
        if !conn.send.is_empty() || conn.has(flag::FIN_SENT) {
            // The linger and `fin_wait` deadlines count from this call, not from the last turn.
            self.refresh_clock();
        }
        self.core.discard_held(id.0);
        self.core.begin_close(id.0, CloseKind::Local);
        Ok(())
    }

    /// Resets a connection: drops what is queued, and sends an RST. [`Event::Closed`] follows once
    /// the operations in flight have completed.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// # Backends
    /// A unix socket has no reset (unix(7)): the peer receives the end of the stream, or ECONNRESET
    /// if received data was left unread.
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// engine.abort(conn)?;
    /// engine.poll(&mut completions, None)?;
    /// let event = completions.pop().map(|completion| completion.event);
    /// let aborted = proactor::CloseKind::Aborted;
    /// assert!(matches!(event, Some(Event::Closed(reason)) if reason.kind == aborted));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn abort(&mut self, id: ConnId) -> Result<(), Error> {
        let core = self.core_mut()?;
        let conn = core.conn_mut(id.0)?;
        if conn.phase != Phase::Terminating {
            conn.set(flag::RESET);
            conn.replace_reason(CloseKind::Aborted, None);
            core.begin_termination(id.0);
        }
        Ok(())
    }

    /// Closes all listeners, and all connections as by [`Engine::close`], with `deadline` from now
    /// instead of `Config::linger`. Returns at once: poll until [`Engine::is_closed`]. Later calls
    /// of [`Engine::connect`] and [`Engine::listen`] fail with [`Error::Closing`].
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// drop(theirs);
    /// engine.close_all(std::time::Duration::from_secs(1));
    /// while !engine.is_closed() {
    ///     engine.poll(&mut completions, None)?;
    ///     completions.drain();
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close_all(&mut self, deadline: Duration) {
        if self.check_usable().is_err() {
            return;
        }
        self.refresh_clock();
        let until = self.core.deadline_after(deadline);
        self.core.close_all(until);
    }

    /// True when no connection, no listener and no event to deliver is left.
    pub fn is_closed(&self) -> bool {
        let core = &*self.core;
        self.is_child()
            || core.admission.live() == 0
                && core.endpoints.listeners_len() == 0
                && core.delivery.is_empty()
    }
}

impl Core {
    fn close_all(&mut self, until: u64) {
        self.admission.begin_close_all(until);
        self.endpoints.listener_keys().into_iter().for_each(|key| self.begin_close_listener(key));
        for key in self.endpoints.conn_keys() {
            self.discard_held(key);
            self.begin_close(key, CloseKind::Shutdown);
            let conn = self.endpoints.conn(key);
            if conn.is_some_and(|conn| matches!(conn.phase, Phase::Closing | Phase::Connecting)) {
                self.set_conn_timer(key, Some(until));
            }
        }
    }

    pub(super) fn begin_close(&mut self, key: Key, kind: CloseKind) {
        let (linger, fin_wait) =
            (self.deadline_after(self.config.linger), self.deadline_after(self.config.fin_wait));
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        let kind = if conn.has(flag::READ_CLOSED) && kind == CloseKind::Local {
            CloseKind::PeerClosed
        } else {
            kind
        };
        match conn.phase {
            Phase::Connecting => {
                conn.set(flag::WRITE_SHUT);
                let nothing_to_send = conn.send.is_empty();
                conn.set_reason(kind, None);
                if nothing_to_send {
                    return self.begin_termination(key);
                }
                self.set_conn_timer(key, Some(linger));
            }
            Phase::Open => {
                conn.set(flag::WRITE_SHUT);
                if kind != CloseKind::Local {
                    conn.set_reason(kind, None);
                }
                if conn.has(flag::WRITE_FAILED) {
                    return self.begin_termination(key);
                }
                conn.phase = Phase::Closing;
                let deadline = match (conn.has(flag::FIN_SENT), conn.send.is_empty()) {
                    (true, _) => Some(fin_wait),
                    (false, false) => Some(linger),
                    // Nothing to send: the next turn sends the FIN.
                    (false, true) => None,
                };
                self.set_conn_timer(key, deadline);
            }
            Phase::Closing | Phase::Terminating => return,
        }
        self.stage(key);
    }

    /// Begins to terminate a connection, with this reason.
    pub(super) fn terminate(&mut self, key: Key, kind: CloseKind, errno: Option<Errno>) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.phase == Phase::Terminating {
            return;
        }
        // A failure replaces an earlier reason. After a failed send the error of that send stays.
        match conn.has(flag::WRITE_FAILED) {
            true => conn.set_reason(kind, errno),
            false => conn.replace_reason(kind, errno),
        }
        self.begin_termination(key);
    }

    /// Begins to terminate a connection, with the reason that is set.
    pub(super) fn begin_termination(&mut self, key: Key) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.phase != Phase::Terminating {
            conn.phase = Phase::Terminating;
            self.set_conn_timer(key, None);
            self.stage(key);
        }
    }

    /// Takes the next step of a close, once the FIN is sent.
    pub(super) fn service_close(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if !conn.has(flag::FIN_SENT) || conn.in_flight(OpKind::Send) {
            return;
        }
        if conn.phase == Phase::Open && conn.has(flag::READ_CLOSED) && !conn.has(flag::EOF_HELD) {
            // Both directions are shut down: the stream is complete.
            return self.terminate(key, CloseKind::PeerClosed, None);
        }
        if conn.phase != Phase::Closing {
            return;
        }
        if !conn.in_flight(OpKind::Recv) {
            self.end_recv_into(key, out);
        }
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.has(flag::READ_CLOSED) || self.config.fin_wait.is_zero() {
            self.begin_termination(key);
        }
    }

    /// The FIN of a close is sent: waits for the peer's FIN, at most `Config::fin_wait`.
    pub(super) fn start_fin_wait(&mut self, key: Key) {
        if self.endpoints.conn(key).is_some_and(|conn| conn.phase == Phase::Closing) {
            let deadline = self.admission.clamp_deadline(self.deadline_after(self.config.fin_wait));
            self.set_conn_timer(key, Some(deadline));
        }
    }

    pub(super) fn service_terminating<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), Full> {
        let Some(conn) = self.endpoints.conn_mut(key) else { return Ok(()) };
        for kind in [OpKind::Connect, OpKind::Recv, OpKind::Send, OpKind::Hangup] {
            if conn.begin_cancel(kind) {
                backend.cancel(key, kind);
            }
        }
        if !conn.nothing_in_flight() {
            return Ok(());
        }
        match backend.start(key, Operation::Close(conn.close_mode())) {
            Started::NoRoom(_) => return Err(Full),
            Started::InFlight | Started::Done | Started::Sent(..) => conn.started(OpKind::Close),
        }
        self.deliver_held_at_end(key, out);
        self.end_recv_into(key, out);
        Ok(())
    }

    /// The descriptor is closed.
    pub(super) fn conn_closed(&mut self, key: Key, out: &mut Completions) {
        self.end_conn(key, out);
        self.retry_paused_listeners();
    }

    /// Emits `Closed`, and frees the slot.
    pub(super) fn end_conn(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn(key) else { return };
        let reason = conn.close_reason();
        self.stats.closed += 1;
        self.admission.remove_conn();
        self.emit(key, Event::Closed(reason), out);
        self.set_conn_timer(key, None);
        if let Some(mut conn) = self.endpoints.remove_conn(key) {
            conn.send.retire(&mut self.send_memory);
        }
    }

    pub(super) fn conn_timer_fired(&mut self, key: Key) {
        let now = self.now;
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.timer = None;
        match conn.phase {
            Phase::Connecting => {
                let closing = conn.reason().is_some();
                let kind =
                    if closing { CloseKind::LingerTimedOut } else { CloseKind::ConnectTimedOut };
                self.terminate(key, kind, None);
            }
            Phase::Open => {
                let Some(due) = conn.idle_deadline() else { return };
                match due <= now {
                    true => self.terminate(key, CloseKind::IdleTimedOut, None),
                    false => self.set_conn_timer(key, Some(due)),
                }
            }
            Phase::Closing if conn.has(flag::FIN_SENT) => self.begin_termination(key),
            Phase::Closing => {
                conn.set(flag::RESET);
                self.terminate(key, CloseKind::LingerTimedOut, None);
            }
            Phase::Terminating => {}
        }
    }

    pub(super) fn start_idle_timer(&mut self, key: Key) {
        let now = self.now;
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.note_activity(now);
        if let Some(due) = conn.idle_deadline() {
            self.set_conn_timer(key, Some(due));
        }
    }
}
