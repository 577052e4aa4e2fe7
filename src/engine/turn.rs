//! A poll and its turns. Owns: the order of the steps of a turn: flush, wait, reap, fire timers.
//! Invariant: a poll ends with an event, at its deadline, or with an error. Generic over the
//! backend, so that it is compiled for each backend separately. Must not know how events are
//! ordered and limited: see `deliver.rs`.

use super::conn::{Phase, flag};
use super::deliver::Delivery;
use super::{Core, Full};
use crate::backend::{Backend, Completed, OpKind, Outcome};
use crate::completion::{Completions, Event};
use crate::error::Error;
use crate::id::Key;

impl Core {
    /// Runs turns until there is an event, or the time is `deadline`.
    pub(super) fn poll<B: Backend>(
        &mut self,
        backend: &mut B,
        out: &mut Completions,
        deadline: Option<u64>,
    ) -> Result<usize, Error> {
        let before = out.len();
        // A full buffer takes no event, so there is no reason to wait.
        let deadline = if out.is_full() { Some(0) } else { deadline };
        loop {
            match self.turn(backend, out, deadline, before) {
                Err(Error::EngineFailed(violation)) => {
                    self.fail(violation, out);
                    self.send_memory.drop_retired();
                    let added = out.len() - before;
                    return if added > 0 || out.is_full() {
                        Ok(added)
                    } else {
                        Err(Error::EngineFailed(violation))
                    };
                }
                result => result?,
            }
            if out.len() > before
                || out.is_full()
                || deadline.is_some_and(|deadline| deadline <= self.now)
            {
                return Ok(out.len() - before);
            }
        }
    }

    fn turn<B: Backend>(
        &mut self,
        backend: &mut B,
        out: &mut Completions,
        deadline: Option<u64>,
        before: usize,
    ) -> Result<(), Error> {
        self.stats.turns += 1;
        self.delivery.begin_turn();
        self.deliver_deferred(Delivery::deferred_share(out), out);
        self.flush(backend, out);
        // Before any receive: a payload may be a lease, whose drop makes its provided buffer free
        // from the start again.
        self.send_memory.drop_retired();
        let nothing_yet = out.len() == before && self.delivery.is_empty();
        // An unparked connection may have nothing to receive. The buffer is then free for the next
        // parked one, without a wait.
        let can_unpark = !self.parking.is_empty() && backend.free_buffers() > 0;
        let idle = nothing_yet && self.staging.is_empty() && !can_unpark && !backend.has_next();
        let until = min_deadline(deadline, self.timers.next_deadline_ns());
        let ready = idle && self.spin_before_wait(backend, until)?;
        if !ready {
            let may_block = idle && self.waker_shared.signal.may_sleep();
            backend.wait(if may_block { until } else { Some(0) })?;
        }
        self.now = backend.now();
        let called = self.waker_shared.signal.take(self.staging.has_event_fd());
        if called {
            self.stats.wakes += 1;
            self.emit_without_conn(0, Event::Woken, out);
        }
        let bytes_max =
            self.delivery.received_bytes_max(self.stats.bytes_received, B::RECEIVES_IN_NEXT);
        while self.delivery.has_room(out)
            && self.stats.bytes_received < bytes_max
            && self.process_next(backend, out)
        {}
        self.fire_timers(out);
        self.deliver_deferred(usize::MAX, out);
        self.send_memory.drop_retired();
        Ok(())
    }

    /// Starts the staged operations, until the backend has no room.
    pub(super) fn flush<B: Backend>(&mut self, backend: &mut B, out: &mut Completions) {
        if !self.parking.is_empty() {
            self.unpark(backend.free_buffers());
        }
        for _ in 0..self.staging.listeners_len() {
            let Some(key) = self.staging.pop_listener() else { break };
            if let Err(Full) = self.service_listener(backend, key) {
                self.stage_listener(key);
                return;
            }
        }
        // Servicing a connection may stage it again, for its next step. The factor bounds the loop.
        for _ in 0..self.staging.conns_len() * 4 {
            let Some(key) = self.staging.pop_conn() else { return };
            let Some(conn) = self.endpoints.conn_mut(key) else { continue };
            conn.unset(flag::STAGED);
            if let Err(Full) = self.service(backend, key, out) {
                self.stage(key);
                return;
            }
        }
    }

    /// Starts the operations that the state of a connection asks for.
    fn service<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), Full> {
        let Some(conn) = self.endpoints.conn(key) else { return Ok(()) };
        match conn.phase {
            Phase::Connecting => self.service_connect(backend, key),
            Phase::Open | Phase::Closing => {
                let fin_before = conn.has(flag::FIN_SENT);
                if conn.needs_send_service() {
                    self.service_send(backend, key, out)?;
                }
                let Some(conn) = self.endpoints.conn(key).filter(|conn| !conn.is_steady()) else {
                    return Ok(());
                };
                let (fin_sent, paused) = (conn.has(flag::FIN_SENT), conn.has(flag::PAUSED));
                // Without a wait for the peer's FIN (`Config::fin_wait`) no receive is needed.
                let ends_at_once =
                    fin_sent && conn.phase == Phase::Closing && self.config.fin_wait.is_zero();
                if !ends_at_once {
                    if fin_sent && !fin_before {
                        self.start_fin_wait(key);
                    }
                    self.service_recv(backend, key, out)?;
                    if paused {
                        self.service_hangup(backend, key, out)?;
                    }
                }
                if fin_sent {
                    self.service_close(key, out);
                }
                Ok(())
            }
            Phase::Terminating if conn.in_flight(OpKind::Close) => Ok(()),
            Phase::Terminating => self.service_terminating(backend, key, out),
        }
    }

    /// Handles the next completed operation. False if there is none.
    #[inline(always)]
    pub(super) fn process_next<B: Backend>(
        &mut self,
        backend: &mut B,
        out: &mut Completions,
    ) -> bool {
        let Some(Completed { key, more, outcome }) = backend.next() else { return false };
        match outcome {
            Outcome::Received(lease) => self.received(key, more, lease, out),
            Outcome::Sent(batch, result) => self.sent(key, batch, result, out),
            outcome => self.process_rare(backend, Completed { key, more, outcome }, out),
        }
        true
    }

    /// Handles the outcomes that are not on the hot path.
    #[inline(never)]
    fn process_rare<B: Backend>(
        &mut self,
        backend: &mut B,
        completed: Completed<B::Socket>,
        out: &mut Completions,
    ) {
        let Completed { key, more, outcome } = completed;
        match outcome {
            Outcome::Received(lease) => self.received(key, more, lease, out),
            Outcome::Sent(batch, result) => self.sent(key, batch, result, out),
            Outcome::RecvEnded(result) => self.recv_ended(key, result, out),
            Outcome::Filled(recv_buf, result) => self.filled(key, recv_buf, result, out),
            Outcome::HungUp(result) => self.hung_up(key, result, out),
            Outcome::Released(payload) => self.send_memory.retire(*payload),
            Outcome::Connected(result) => self.connected(key, result, out),
            Outcome::Accepted(socket) => self.accepted(backend, key, more, socket, out),
            Outcome::AcceptFailed(errno) => self.accept_failed(key, errno, out),
            Outcome::Closed if self.endpoints.is_listener(key) => self.listener_closed(key, out),
            Outcome::Closed => self.conn_closed(key, out),
            Outcome::Woken => {}
        }
    }
}

fn min_deadline(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
