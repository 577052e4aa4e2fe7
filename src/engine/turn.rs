//! The one turn: start what is wanted, wait, take what is finished, fire what is due. Generic over the backend, so that
//! everything in it is compiled for each one by itself.

use super::conn::{Phase, flag};
use super::core::Core;
use crate::backend::{Backend, Done, Next, Op, QueueFull};
use crate::completion::{Completions, Event};
use crate::error::Error;
use crate::id::{Key, TimerId};
use crate::mutant::{self, Mutant};
use crate::timer::Owner;

/// At least so many completions may wait for the next poll.
const PENDING_MIN: usize = 64;

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
            if self.failed.is_some() {
                return self.after_failure(out);
            }
            self.turn(backend, out, deadline, before)?;
            if out.len() > before || out.is_full() || deadline.is_some_and(|deadline| deadline <= self.now) {
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
        self.turn = self.turn.wrapping_add(1);
        // What waited goes first, but leaves room for others.
        self.deliver_pending(out.capacity().div_ceil(4), out);
        self.flush(backend, out);
        // Before the wait, so that nothing is kept for longer than it is needed; and here the engine is
        // whole, should an owner's drop panic.
        self.disposal.drop_payloads();
        let nothing_yet = out.len() == before && self.pending.is_empty();
        // A connection that was let go on may have nothing to receive: the next parked one then gets its chance at once.
        let parked_may_try = !self.parked.is_empty() && backend.free_buffers() > 0;
        let idle = nothing_yet && !self.has_staged() && !parked_may_try && !backend.has_next();
        let until = earlier(deadline, self.wheel.next_deadline_ns());
        let found = idle && self.look_before_sleep(backend, until)?;
        if !found {
            let sleeps = idle && self.inbox.signal.may_sleep();
            backend.wait(if sleeps { until } else { Some(0) })?;
        }
        self.now = backend.now();
        let called = self.inbox.signal.take(self.staged.foreign.is_some());
        if called && !(mutant::is(Mutant::MissedWakeup) && self.turn.is_multiple_of(3)) {
            self.stats.wakes += 1;
            self.emit_other(0, Event::Woken, out);
        }
        // What waits to be told is bounded: the rest stays with the kernel, which holds the peers back.
        let pending_max = out.capacity().max(PENDING_MIN);
        let most = if B::RECEIVES_WHEN_ASKED { self.config.turn_bytes as u64 } else { u64::MAX };
        let enough = self.stats.bytes_received.saturating_add(most);
        while !out.is_full()
            && self.pending.len() < pending_max
            && self.stats.bytes_received < enough
            && self.violation.is_none()
            && self.take_next(backend, out)
        {}
        match self.violation.or_else(|| backend.violation()) {
            Some(violation) => self.fail(backend, violation),
            None => self.fire_timers(out),
        }
        self.deliver_pending(usize::MAX, out);
        self.disposal.drop_payloads();
        Ok(())
    }

    /// Starts what is wanted, as far as the backend has room.
    pub(super) fn flush<B: Backend>(&mut self, backend: &mut B, out: &mut Completions) {
        if !self.parked.is_empty() {
            self.unpark(backend.free_buffers());
        }
        for _ in 0..self.dirty_listeners.len() {
            let key = self.dirty_listeners.pop_front().expect("counted above");
            let Some(listener) = self.listeners.get_mut(key) else { continue };
            listener.dirty = false;
            if self.service_listener(backend, key).is_err() {
                self.mark_listener_dirty(key);
                return;
            }
        }
        // Servicing one step of a connection can make the next one possible: go on, but not for ever.
        for _ in 0..self.staged.conns.len() * 4 {
            let Some(key) = self.staged.conns.pop_front() else { return };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.unset(flag::DIRTY);
            if self.service(backend, key, out).is_err() {
                if !mutant::is(Mutant::LostQueueFull) {
                    self.mark_dirty(key);
                }
                return;
            }
        }
    }

    /// Starts what a connection wants.
    fn service<B: Backend>(&mut self, backend: &mut B, key: Key, out: &mut Completions) -> Result<(), QueueFull> {
        let conn = self.conns.get(key).expect("looked up by the caller");
        match conn.phase {
            Phase::Connecting => self.service_connect(backend, key),
            Phase::Open | Phase::Closing => {
                let fin_before = conn.has(flag::FIN_SENT);
                self.service_send(backend, key, out)?;
                let Some(conn) = self.conns.get(key).filter(|conn| !conn.is_steady()) else { return Ok(()) };
                let fin_sent = conn.has(flag::FIN_SENT);
                // With no wait for the peer's FIN there is nothing more to receive either.
                let ends_at_once = fin_sent && conn.phase == Phase::Closing && self.config.fin_wait.is_zero();
                if !ends_at_once {
                    if fin_sent && !fin_before {
                        self.fin_sent(key);
                    }
                    self.service_recv(backend, key, out)?;
                }
                self.service_close(key, out);
                Ok(())
            }
            Phase::Terminating if conn.in_flight(Op::Close) => Ok(()),
            Phase::Terminating => self.service_terminating(backend, key, out),
            Phase::Ghost => Ok(()),
        }
    }

    /// Takes the next thing that the backend has to tell. False if there is none.
    #[inline(always)]
    pub(super) fn take_next<B: Backend>(&mut self, backend: &mut B, out: &mut Completions) -> bool {
        match backend.next(|key, more, lease| self.on_data(key, more, lease, out)) {
            Next::Nothing => return false,
            Next::Data => {}
            Next::Done(done) => self.finish_op(backend, done, out),
        }
        true
    }

    #[inline(always)]
    fn finish_op<B: Backend>(&mut self, backend: &mut B, done: Done<B::Socket>, out: &mut Completions) {
        let Done { key, op, more, outcome } = done;
        match op {
            Op::Recv => self.on_recv(key, outcome, out),
            Op::Send => self.on_send(key, more, outcome, out),
            Op::Accept => self.on_accept(backend, key, more, outcome, out),
            Op::Connect => self.on_connect(key, outcome, out),
            Op::Close => self.finished(key, out),
            Op::CloseListener => self.on_listener_closed(key, out),
            Op::Wake => {}
        }
    }

    fn fire_timers(&mut self, out: &mut Completions) {
        self.wheel.advance(self.now + if mutant::is(Mutant::EarlyTimer) { 1_000_000 } else { 0 });
        while !out.is_full() {
            let Some((key, owner)) = self.wheel.pop_due() else { return };
            match owner {
                Owner::User { tag } => {
                    self.user_timers -= 1;
                    self.stats.timers_fired += 1;
                    self.emit_other(tag, Event::Timer { id: TimerId(key) }, out);
                }
                Owner::Conn(conn) => self.on_conn_timer(conn),
                Owner::Listener(listener) => self.on_listener_timer(listener, out),
            }
        }
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
