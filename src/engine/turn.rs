//! The one turn: start what is wanted, wait, take what has completed, fire what is due. Generic
//! over the backend, so that everything in it is compiled for each one by itself. What the caller
//! is told, and in which order, is in `deliver.rs`.

use super::conn::{Phase, flag};
use super::deliver::Delivery;
use super::{Core, Full};
use crate::backend::{Backend, Completed, OpKind, Outcome};
use crate::completion::{Completions, Event};
use crate::error::Error;
use crate::id::Key;

impl Core {
    /// Turns until there is something to tell, or the time `deadline` has come.
    pub(super) fn poll<B: Backend>(
        &mut self,
        backend: &mut B,
        out: &mut Completions,
        deadline: Option<u64>,
    ) -> Result<usize, Error> {
        let before = out.len();
        // Without room for an event there is nothing to wait for.
        let deadline = if out.is_full() { Some(0) } else { deadline };
        loop {
            match self.turn(backend, out, deadline, before) {
                Err(Error::EngineFailed(what)) => {
                    self.fail(what, out);
                    self.send_memory.drop_retired();
                    let told = out.len() - before;
                    return if told > 0 || out.is_full() {
                        Ok(told)
                    } else {
                        Err(Error::EngineFailed(what))
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
        self.deliver_waiting(Delivery::first_share(out), out);
        self.flush(backend, out);
        // Before anything is received: a lease that left makes its buffer fit to be filled from the
        // start.
        self.send_memory.drop_retired();
        let nothing_yet = out.len() == before && self.delivery.is_empty();
        // A connection that was let go on may have nothing to receive: the next parked one then
        // gets its chance at once.
        let parked_may_try = !self.parking.is_empty() && backend.free_buffers() > 0;
        let idle = nothing_yet && self.staging.is_empty() && !parked_may_try && !backend.has_next();
        let until = earlier(deadline, self.timers.next_deadline_ns());
        let found = idle && self.look_before_sleep(backend, until)?;
        if !found {
            let sleeps = idle && self.inbox.signal.may_sleep();
            backend.wait(if sleeps { until } else { Some(0) })?;
        }
        self.now = backend.now();
        let called = self.inbox.signal.take(self.staging.is_foreign());
        if called {
            self.stats.wakes += 1;
            self.emit_other(0, Event::Woken, out);
        }
        let enough = self.delivery.turn_ends_at(self.stats.bytes_received, B::RECEIVES_WHEN_ASKED);
        while self.delivery.takes_more(out)
            && self.stats.bytes_received < enough
            && self.take_next(backend, out)
        {}
        self.fire_timers(out);
        self.deliver_waiting(usize::MAX, out);
        self.send_memory.drop_retired();
        Ok(())
    }

    /// Starts what is wanted, as far as the backend has room.
    pub(super) fn flush<B: Backend>(&mut self, backend: &mut B, out: &mut Completions) {
        if !self.parking.is_empty() {
            self.unpark(backend.free_buffers());
        }
        for _ in 0..self.staging.listeners_len() {
            let Some(key) = self.staging.pop_listener() else { break };
            if let Err(Full) = self.service_listener(backend, key) {
                self.mark_listener_dirty(key);
                return;
            }
        }
        // Servicing one step of a connection can make the next one possible: go on, but not for
        // ever.
        for _ in 0..self.staging.conns_len() * 4 {
            let Some(key) = self.staging.pop_conn() else { return };
            let Some(conn) = self.endpoints.conn_mut(key) else { continue };
            conn.unset(flag::DIRTY);
            if let Err(Full) = self.service(backend, key, out) {
                self.mark_dirty(key);
                return;
            }
        }
    }

    /// Starts what a connection wants.
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
                if conn.wants_service_of_sends() {
                    self.service_send(backend, key, out)?;
                }
                let Some(conn) = self.endpoints.conn(key).filter(|conn| !conn.is_steady()) else {
                    return Ok(());
                };
                let (fin_sent, paused) = (conn.has(flag::FIN_SENT), conn.has(flag::PAUSED));
                // With no wait for the peer's FIN there is nothing more to receive either.
                let ends_at_once =
                    fin_sent && conn.phase == Phase::Closing && self.config.fin_wait.is_zero();
                if !ends_at_once {
                    if fin_sent && !fin_before {
                        self.fin_sent(key);
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

    /// Takes the next completion. False if there is none.
    #[inline(always)]
    pub(super) fn take_next<B: Backend>(&mut self, backend: &mut B, out: &mut Completions) -> bool {
        let Some(Completed { key, more, outcome }) = backend.next() else { return false };
        match outcome {
            Outcome::Received(lease) => self.received(key, more, lease, out),
            Outcome::Sent(batch, result) => self.sent(key, batch, result, out),
            outcome => self.completed(backend, Completed { key, more, outcome }, out),
        }
        true
    }

    /// What completes less often.
    #[inline(never)]
    fn completed<B: Backend>(
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

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
