//! Timers of the caller, and of connections and listeners. Owns: the timer wheel, and the number of
//! the caller's timers. Invariant: an endpoint has at most one timer. Must not know how the wheel
//! orders timers.

use super::{Core, Engine};
use crate::completion::{Completions, Event};
use crate::error::Error;
use crate::id::{EngineNumber, Key, TimerId};
use crate::timer::{Owner, Wheel};
use std::time::{Duration, Instant};

impl Engine {
    /// Sets a timer: [`Event::Timer`] with `tag` follows after `delay`, never earlier. The
    /// resolution is 65.5 microseconds. O(1), without a system call except to read the clock.
    ///
    /// # Errors
    /// [`Error::Limit`] at `Config::timers_max`.
    ///
    /// ```
    /// use proactor::{Completions, Config, Engine, Event};
    /// use std::time::Duration;
    /// let mut engine = Engine::new(Config::default())?;
    /// let mut completions = Completions::with_capacity(16);
    /// let timer = engine.timer_after(Duration::from_millis(1), 7)?;
    /// engine.poll(&mut completions, None)?;
    /// let completion = completions.pop().unwrap();
    /// assert!(matches!(completion.event, Event::Timer { id } if id == timer));
    /// assert_eq!(completion.tag, 7);
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn timer_after(&mut self, delay: Duration, tag: u64) -> Result<TimerId, Error> {
        self.check_usable()?;
        self.refresh_clock();
        let deadline = self.core.deadline_after(delay);
        self.core.add_timer(deadline, tag)
    }

    /// As [`Engine::timer_after`], at an instant. A timer in the past fires in the next poll.
    ///
    /// # Errors
    /// As [`Engine::timer_after`].
    pub fn timer_at(&mut self, when: Instant, tag: u64) -> Result<TimerId, Error> {
        self.check_usable()?;
        let deadline = self.ns_since_epoch(when);
        self.core.add_timer(deadline, tag)
    }

    /// Cancels a timer. False if it has fired or was cancelled before. An [`Event::Timer`] that is
    /// deferred to a later poll is still delivered.
    pub fn timer_cancel(&mut self, id: TimerId) -> bool {
        if self.is_child() {
            return false;
        }
        self.core.timers.cancel_user(id)
    }

    /// Sets a timer to fire after `delay` from now. False if it has fired or was cancelled.
    ///
    /// ```
    /// use proactor::{Config, Engine};
    /// use std::time::Duration;
    /// let mut engine = Engine::new(Config::default())?;
    /// let when = engine.now() + Duration::from_secs(60);
    /// let timer = engine.timer_at(when, 0)?;
    /// assert!(engine.timer_reset(timer, Duration::from_secs(5)));
    /// assert!(engine.timer_cancel(timer) && engine.timers() == 0);
    /// assert!(!engine.timer_reset(timer, Duration::from_secs(5)));
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn timer_reset(&mut self, id: TimerId, delay: Duration) -> bool {
        if self.is_child() {
            return false;
        }
        self.refresh_clock();
        let deadline = self.core.deadline_after(delay);
        self.core.staging.signal();
        self.core.timers.wheel.reset(id.0, deadline)
    }

    /// The number of pending timers of the caller.
    pub fn timers(&self) -> usize {
        if self.is_child() { 0 } else { self.core.timers.user }
    }
}

#[derive(Debug)]
pub(super) struct Timers {
    wheel: Wheel,
    user: usize,
    user_max: usize,
}

impl Timers {
    pub(super) fn new(engine: EngineNumber, user_max: usize) -> Timers {
        Timers { wheel: Wheel::new(engine), user: 0, user_max }
    }

    /// Sets, moves or cancels the timer of a connection or listener.
    pub(super) fn set(&mut self, timer: &mut Option<Key>, deadline: Option<u64>, owner: Owner) {
        match (*timer, deadline) {
            (Some(timer), Some(deadline)) => {
                self.wheel.reset(timer, deadline);
            }
            (Some(old), None) => {
                self.wheel.cancel(old);
                *timer = None;
            }
            (None, Some(deadline)) => *timer = Some(self.wheel.add(deadline, owner)),
            (None, None) => {}
        }
    }

    fn cancel_user(&mut self, id: TimerId) -> bool {
        let cancelled = self.wheel.cancel(id.0);
        self.user -= usize::from(cancelled);
        cancelled
    }

    #[inline]
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.wheel.next_deadline_ns()
    }

    /// The number of all pending timers, and of those of the caller.
    #[cfg(feature = "sim")]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.wheel.len(), self.user)
    }

    /// Drops all timers.
    pub(super) fn clear(&mut self, engine: EngineNumber) {
        (self.wheel, self.user) = (Wheel::new(engine), 0);
    }
}

impl Core {
    fn add_timer(&mut self, deadline: u64, tag: u64) -> Result<TimerId, Error> {
        if self.timers.user >= self.timers.user_max {
            return Err(Error::Limit { limit: "timers_max", value: self.timers.user_max });
        }
        self.timers.user += 1;
        self.staging.signal();
        Ok(TimerId(self.timers.wheel.add(deadline, Owner::User { tag })))
    }

    /// Sets, moves or cancels the timer of a connection.
    pub(super) fn set_conn_timer(&mut self, key: Key, deadline: Option<u64>) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        self.timers.set(&mut conn.timer, deadline, Owner::Endpoint(key));
    }

    pub(super) fn fire_timers(&mut self, out: &mut Completions) {
        self.timers.wheel.advance(self.now);
        while !out.is_full() {
            let Some((key, owner)) = self.timers.wheel.pop_due() else { return };
            match owner {
                Owner::User { tag } => {
                    self.timers.user -= 1;
                    self.stats.timers_fired += 1;
                    self.emit_without_conn(tag, Event::Timer { id: TimerId(key) }, out);
                }
                Owner::Endpoint(listener) if self.endpoints.is_listener(listener) => {
                    self.listener_timer_fired(listener, out);
                }
                Owner::Endpoint(conn) => self.conn_timer_fired(conn),
            }
        }
    }
}
