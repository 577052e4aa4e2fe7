//! Timers of the caller. Owns: the public calls; the wheel does the work.

use super::Engine;
use crate::error::Error;
use crate::id::TimerId;
use crate::mutant::{self, Mutant};
use crate::timer::Owner;
use std::time::{Duration, Instant};

impl Engine {
    /// Sets a timer: [`Event::Timer`](crate::Event::Timer) with `tag` after `delay`, never before it. The wheel's resolution is
    /// 65.5 µs. O(1), no system call.
    ///
    /// # Errors
    /// [`Error::Limit`] at `Config::timers_max`.
    pub fn timer_after(&mut self, delay: Duration, tag: u64) -> Result<TimerId, Error> {
        self.check()?;
        self.refresh_clock();
        let deadline = self.core.later(delay);
        self.timer_at_ns(deadline, tag)
    }

    /// As [`Engine::timer_after`], at an instant. One that has passed fires in the next poll.
    ///
    /// # Errors
    /// As [`Engine::timer_after`].
    pub fn timer_at(&mut self, when: Instant, tag: u64) -> Result<TimerId, Error> {
        self.check()?;
        let deadline = self.nanoseconds_of(when);
        self.timer_at_ns(deadline, tag)
    }

    fn timer_at_ns(&mut self, deadline: u64, tag: u64) -> Result<TimerId, Error> {
        if self.core.user_timers >= self.core.config.timers_max {
            return Err(Error::Limit { limit: "timers_max", value: self.core.config.timers_max });
        }
        self.core.user_timers += 1;
        self.core.staged.kick();
        Ok(TimerId(self.core.wheel.add(deadline, Owner::User { tag })))
    }

    /// Cancels a timer. False if it has fired, or was cancelled before: an event of it that was not yet handed out still comes.
    pub fn timer_cancel(&mut self, id: TimerId) -> bool {
        if self.is_child() {
            return false;
        }
        if mutant::is(Mutant::UndeadTimer) {
            return true;
        }
        let cancelled = self.core.wheel.cancel(id.0);
        self.core.user_timers -= usize::from(cancelled);
        cancelled
    }

    /// Moves a timer to `delay` from now. False if it has fired, or was cancelled.
    pub fn timer_reset(&mut self, id: TimerId, delay: Duration) -> bool {
        if self.is_child() {
            return false;
        }
        self.refresh_clock();
        let deadline = self.core.later(delay);
        self.core.staged.kick();
        self.core.wheel.reset(id.0, deadline)
    }

    /// The number of timers that are set.
    pub fn timers(&self) -> usize {
        if self.is_child() { 0 } else { self.core.user_timers }
    }
}
