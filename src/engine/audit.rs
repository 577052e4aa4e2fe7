//! Consistency checks of an engine's state, for tests. Owns: nothing. Invariant: changes nothing.

use super::conn::flag;
use super::{Core, Engine};
use crate::error::Error;

impl Engine {
    /// Checks that the engine's state is consistent: flags agree with lists, each timer has an
    /// owner, and counters agree with what they count. For tests and fuzzers. Takes time in
    /// proportion to the number of connections and listeners.
    ///
    /// # Errors
    /// A description of the inconsistency, which is a bug of this crate. In a forked child, the
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
        let agree = |what: &str, counted: usize, recorded: usize| match counted == recorded {
            true => Ok(()),
            false => Err(format!("{what}: {counted} counted, {recorded} recorded")),
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
            let listed = self.staging.contains(key);
            if conn.has(flag::STAGED) != listed {
                return Err(format!(
                    "connection {key:?}: staged {}, on the list {listed}",
                    conn.has(flag::STAGED)
                ));
            }
            if conn.has(flag::PARKED) && !self.parking.contains(key) {
                return Err(format!("connection {key:?} is parked, but not on the list"));
            }
            if !conn.cancels_agree() {
                return Err(format!(
                    "connection {key:?}: a cancel of an operation that is not in flight"
                ));
            }
        }
        Ok(())
    }
}
