//! Whether the engine's books agree with each other. Owns: nothing; looks at everything, for tests.

use super::conn::flag;
use super::{Core, Engine};
use crate::error::Error;

impl Engine {
    /// Checks the engine's own books: each connection that wants something is on a list, each timer
    /// belongs to somebody, counts are the lengths of what they count. For tests and fuzzers; takes
    /// time in proportion to what is open.
    ///
    /// # Errors
    /// What does not agree, in words: that would be a bug of this crate. In a forked child, the
    /// text of [`Error::Forked`].
    pub fn audit(&self) -> Result<(), String> {
        if self.is_child() {
            return Err(Error::Forked.to_string());
        }
        self.core.audit()
    }
}

impl Core {
    fn audit(&self) -> Result<(), String> {
        let agree = |what: &str, counted: usize, booked: usize| match counted == booked {
            true => Ok(()),
            false => Err(format!("{what}: {counted} counted, {booked} booked")),
        };
        let conns = || self.endpoints.conns();
        let listeners = || self.endpoints.listeners().map(|(_, listener)| listener);
        agree("connections", conns().count(), self.admission.live())?;
        agree("connections in the table", conns().count(), self.endpoints.conns_len())?;
        agree("listeners", listeners().count(), self.endpoints.listeners_len())?;
        let timers = conns().filter(|(_, conn)| conn.timer.is_some()).count()
            + listeners().filter(|listener| listener.has_timer()).count();
        let (all_timers, user_timers) = self.timers.counts();
        agree("timers", timers + user_timers, all_timers)?;
        let paused = listeners().filter(|listener| listener.is_paused()).count();
        agree("paused listeners", paused, self.admission.paused_listeners())?;
        let deferred = conns().map(|(_, conn)| conn.quota.deferred()).sum();
        agree(
            "deferred events",
            self.delivery.count(|key| self.endpoints.conn(key).is_some()),
            deferred,
        )?;
        for (key, conn) in conns() {
            let listed = self.staging.lists(key);
            if conn.has(flag::DIRTY) != listed {
                return Err(format!(
                    "connection {key:?}: marked {}, listed {listed}",
                    conn.has(flag::DIRTY)
                ));
            }
            if conn.has(flag::PARKED) && !self.parking.contains(key) {
                return Err(format!("connection {key:?} waits for a buffer on no list"));
            }
            if !conn.cancels_agree() {
                return Err(format!(
                    "connection {key:?}: cancels of operations that are not in flight"
                ));
            }
        }
        Ok(())
    }
}
