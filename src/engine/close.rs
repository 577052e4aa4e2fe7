//! Ending connections. Owns: the way from `close` or a failure to `Closed`. Invariant: each connection goes through
//! [`Core::finished`] once; nothing is closed while an operation on it is in flight.
//!
//! ```text
//! close:  flush the queue -> FIN -> discard input until the peer's FIN, at most fin_wait -> cancel what is left -> close
//! abort:  cancel -> reset
//! ```

use super::Engine;
use super::conn::{Phase, flag};
use super::core::Core;
use crate::backend::{Backend, Op, QueueFull};
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};
use crate::mutant::{self, Mutant};
use std::time::Duration;

impl Engine {
    /// Closes a connection in good order: what is queued is sent, then the FIN; input is discarded from now on. If the peer does
    /// not take everything within `Config::linger`, the connection is reset. Ends with [`Event::Closed`]. Closing twice is no
    /// error.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn close(&mut self, id: ConnId) -> Result<(), Error> {
        let conn = self.own()?.conn(id.0)?;
        if !conn.queue_is_empty() || conn.has(flag::FIN_SENT) {
            // A deadline counts from now, not from the last turn.
            self.refresh_clock();
        }
        self.core.discard_stash(id.0);
        self.core.begin_close(id.0, CloseKind::Local);
        Ok(())
    }

    /// Resets a connection: what is queued is dropped, the peer gets an RST. Ends with [`Event::Closed`], as soon as the kernel has
    /// let go of what was in flight.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// # Backends
    /// A unix socket knows no reset: the peer sees an end of stream, or ECONNRESET if data was left unread here.
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

    /// Ends everything: closes the listeners, and each connection as by [`Engine::close`], with `deadline` from now instead of
    /// the linger time. Returns at once; go on polling until [`Engine::is_drained`]. New connects and listens are refused.
    pub fn drain(&mut self, deadline: Duration) {
        if self.is_child() {
            return;
        }
        self.refresh_clock();
        self.core.draining = true;
        let listeners: Vec<Key> = self.core.listeners.keys().collect();
        for key in listeners {
            self.core.listeners.get_mut(key).expect("just listed").closing = true;
            self.core.mark_listener_dirty(key);
        }
        let until = self.core.later(deadline);
        self.core.drain_until = until;
        let conns: Vec<Key> = self.core.conns.keys().collect();
        for key in conns {
            self.core.discard_stash(key);
            self.core.begin_close(key, CloseKind::Shutdown);
            if self.core.conns.get(key).is_some_and(|conn| matches!(conn.phase, Phase::Closing | Phase::Connecting)) {
                self.core.set_conn_timer(key, Some(until));
            }
        }
    }

    /// True when no connection and no listener is left, and every completion was handed out.
    pub fn is_drained(&self) -> bool {
        let core = &*self.core;
        self.is_child() || core.live == 0 && core.listeners.is_empty() && core.pending.is_empty()
    }
}

impl Core {
    pub(super) fn begin_close(&mut self, key: Key, kind: CloseKind) {
        let (linger, fin_wait) = (self.later(self.config.linger), self.config.fin_wait);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let kind = if conn.has(flag::READ_CLOSED) && kind == CloseKind::Local { CloseKind::PeerClosed } else { kind };
        match conn.phase {
            Phase::Connecting => {
                conn.set(flag::WRITE_SHUT);
                let nothing_to_send = conn.queue_is_empty();
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
                let deadline = match (conn.has(flag::FIN_SENT), conn.queue_is_empty()) {
                    (true, _) => Some(self.later(fin_wait)),
                    (false, false) => Some(linger),
                    // Nothing has to be taken by the peer: the FIN leaves with the next turn.
                    (false, true) => None,
                };
                self.set_conn_timer(key, deadline);
            }
            Phase::Closing | Phase::Terminating | Phase::Ghost => return,
        }
        self.mark_dirty(key);
    }

    /// Decides the end, for this reason.
    pub(super) fn terminate(&mut self, key: Key, kind: CloseKind, errno: Option<Errno>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if matches!(conn.phase, Phase::Terminating | Phase::Ghost) {
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
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !matches!(conn.phase, Phase::Terminating | Phase::Ghost) {
            conn.phase = Phase::Terminating;
            self.set_conn_timer(key, None);
            self.mark_dirty(key);
        }
    }

    /// After the send side: is it time for the next step of a close?
    pub(super) fn service_close(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.has(flag::FIN_SENT) || conn.in_flight(Op::Send) {
            return;
        }
        if conn.phase == Phase::Open && conn.has(flag::READ_CLOSED) && !conn.has(flag::EOF_HELD) {
            // Both directions are shut: there is nothing left to happen.
            return self.terminate(key, CloseKind::PeerClosed, None);
        }
        if conn.phase != Phase::Closing {
            return;
        }
        if conn.is_filling() && !conn.in_flight(Op::Recv) {
            self.finish_fill(key, true, out);
        }
        let conn = self.conns.get_mut(key).expect("still there");
        if conn.has(flag::READ_CLOSED) || self.config.fin_wait.is_zero() {
            self.end_phase(key);
        }
    }

    /// The FIN is out: from now on only the peer's FIN is waited for.
    pub(super) fn fin_sent(&mut self, key: Key) {
        if self.conns.get(key).is_some_and(|conn| conn.phase == Phase::Closing) {
            let deadline = self.later(self.config.fin_wait).min(self.drain_until);
            self.set_conn_timer(key, Some(deadline));
        }
    }

    pub(super) fn service_terminating<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), QueueFull> {
        let conn = self.conns.get_mut(key).expect("serviced while live");
        for op in [Op::Connect, Op::Recv, Op::Send] {
            if conn.cancellable(op) {
                if !mutant::is(Mutant::LostCancel) {
                    backend.cancel(key, op)?;
                }
                conn.advised_to_end(op);
            }
        }
        if conn.ops != 0 && !mutant::is(Mutant::CloseInFlight) {
            return Ok(());
        }
        if mutant::is(Mutant::LeakedSocket) && key.slot % 4 == 3 {
            self.finished(key, out);
            return Ok(());
        }
        backend.start_close(key, conn.close_how())?;
        conn.started(Op::Close);
        self.release_stash(key, out);
        self.finish_fill(key, true, out);
        Ok(())
    }

    /// The descriptor is closed: tell, and free the slot.
    pub(super) fn finished(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.ended(Op::Close);
        let (silent, reason) = (conn.has(flag::SILENT), conn.close_reason());
        let ghost = conn.owes_notices();
        if let Some(queue) = &mut conn.queue {
            queue.clear(&mut self.disposal);
        }
        if !silent {
            self.stats.closed += 1;
            self.live -= 1;
            if mutant::is(Mutant::TerminalTwice) && reason.unsent_bytes > 0 {
                self.emit(key, Event::Closed(reason), out);
            }
            self.emit(key, Event::Closed(reason), out);
        }
        self.set_conn_timer(key, None);
        if ghost {
            let conn = self.conns.get_mut(key).expect("still there");
            conn.phase = Phase::Ghost;
            conn.cold = None;
        } else {
            self.recycle_queue(key);
            self.conns.remove(key);
        }
        self.retry_paused_listeners();
    }

    pub(super) fn on_conn_timer(&mut self, key: Key) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.timer = None;
        match conn.phase {
            Phase::Connecting => {
                let closing = conn.cold.as_ref().is_some_and(|cold| cold.reason.is_some());
                let kind = if closing { CloseKind::LingerTimedOut } else { CloseKind::ConnectTimedOut };
                self.terminate(key, kind, None);
            }
            Phase::Open => {
                let Some(idle) = conn.cold.as_ref().and_then(|cold| cold.idle_ns) else { return };
                let due = conn.active_at.saturating_add(idle);
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
            Phase::Terminating | Phase::Ghost => {}
        }
    }

    pub(super) fn start_idle_timer(&mut self, key: Key) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Some(idle) = conn.cold.as_ref().and_then(|cold| cold.idle_ns) {
            conn.active_at = now;
            self.set_conn_timer(key, Some(now.saturating_add(idle)));
        }
    }
}
