//! Ending connections. Owns: the way from `close` or a failure to `Closed`. Invariant: each
//! connection goes through [`Core::end_conn`] once; nothing is closed while an operation on it is
//! in flight.
//!
//! ```text
//! close:  flush the queue -> FIN -> discard input until the peer's FIN, at most fin_wait
//!         -> cancel what is left -> close
//! abort:  cancel -> reset
//! ```

use super::conn::{Phase, flag};
use super::{Core, Engine, Full};
use crate::backend::{Backend, OpKind, Operation, Started};
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};
use std::time::Duration;

impl Engine {
    /// Closes a connection in good order: what is queued is sent, then the FIN; input is discarded
    /// from now on. If the peer does not take everything within `Config::linger`, the connection is
    /// reset. Ends with [`Event::Closed`]. Closing twice is no error.
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
        let conn = self.own()?.conn(id.0)?;
        if !conn.send.is_empty() || conn.has(flag::FIN_SENT) {
            // A deadline counts from now, not from the last turn.
            self.refresh_clock();
        }
        self.core.discard_held(id.0);
        self.core.begin_close(id.0, CloseKind::Local);
        Ok(())
    }

    /// Resets a connection: what is queued is dropped, the peer gets an RST. Ends with
    /// [`Event::Closed`], as soon as the kernel has let go of what was in flight.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// # Backends
    /// A unix socket knows no reset: the peer sees an end of stream, or ECONNRESET if data was left
    /// unread here.
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
        let core = self.own()?;
        let conn = core.conn(id.0)?;
        if conn.phase != Phase::Terminating {
            conn.set(flag::RESET);
            conn.replace_reason(CloseKind::Aborted, None);
            core.end_phase(id.0);
        }
        Ok(())
    }

    /// Ends everything: closes the listeners, and each connection as by [`Engine::close`], with
    /// `deadline` from now instead of the linger time. Returns at once; go on polling until
    /// [`Engine::is_closed`]. New connects and listens are refused.
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
        if self.check().is_err() {
            return;
        }
        self.refresh_clock();
        let until = self.core.later(deadline);
        self.core.close_all(until);
    }

    /// True when no connection and no listener is left, and every completion was handed out.
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
        let (linger, fin_wait) = (self.later(self.config.linger), self.later(self.config.fin_wait));
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
                    return self.end_phase(key);
                }
                self.set_conn_timer(key, Some(linger));
            }
            Phase::Open => {
                conn.set(flag::WRITE_SHUT);
                if kind != CloseKind::Local {
                    conn.set_reason(kind, None);
                }
                if conn.has(flag::WRITE_DEAD) {
                    return self.end_phase(key);
                }
                conn.phase = Phase::Closing;
                let deadline = match (conn.has(flag::FIN_SENT), conn.send.is_empty()) {
                    (true, _) => Some(fin_wait),
                    (false, false) => Some(linger),
                    // Nothing has to be taken by the peer: the FIN leaves with the next turn.
                    (false, true) => None,
                };
                self.set_conn_timer(key, deadline);
            }
            Phase::Closing | Phase::Terminating => return,
        }
        self.mark_dirty(key);
    }

    /// Decides the end, for this reason.
    pub(super) fn terminate(&mut self, key: Key, kind: CloseKind, errno: Option<Errno>) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.phase == Phase::Terminating {
            return;
        }
        // While data could still be lost, a failure overrules "closed here".
        match conn.has(flag::WRITE_DEAD) {
            true => conn.set_reason(kind, errno),
            false => conn.replace_reason(kind, errno),
        }
        self.end_phase(key);
    }

    /// Decides the end, for the reason already known.
    pub(super) fn end_phase(&mut self, key: Key) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.phase != Phase::Terminating {
            conn.phase = Phase::Terminating;
            self.set_conn_timer(key, None);
            self.mark_dirty(key);
        }
    }

    /// After the send side: is it time for the next step of a close?
    pub(super) fn service_close(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if !conn.has(flag::FIN_SENT) || conn.in_flight(OpKind::Send) {
            return;
        }
        if conn.phase == Phase::Open && conn.has(flag::READ_CLOSED) && !conn.has(flag::EOF_HELD) {
            // Both directions are shut: there is nothing left to happen.
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
            self.end_phase(key);
        }
    }

    /// The FIN is out: from now on only the peer's FIN is waited for.
    pub(super) fn fin_sent(&mut self, key: Key) {
        if self.endpoints.conn(key).is_some_and(|conn| conn.phase == Phase::Closing) {
            let deadline = self.admission.within_close_all(self.later(self.config.fin_wait));
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
        self.release_held(key, out);
        self.end_recv_into(key, out);
        Ok(())
    }

    /// The descriptor is closed.
    pub(super) fn conn_closed(&mut self, key: Key, out: &mut Completions) {
        self.end_conn(key, out);
        self.retry_paused_listeners();
    }

    /// Reports the end of a connection, and frees its slot.
    pub(super) fn end_conn(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn(key) else { return };
        let reason = conn.close_reason();
        self.stats.closed += 1;
        self.admission.left();
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
                let Some(due) = conn.idle_until() else { return };
                match due <= now {
                    true => self.terminate(key, CloseKind::IdleTimedOut, None),
                    false => self.set_conn_timer(key, Some(due)),
                }
            }
            Phase::Closing if conn.has(flag::FIN_SENT) => self.end_phase(key),
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
        if let Some(due) = conn.idle_until() {
            self.set_conn_timer(key, Some(due));
        }
    }
}
