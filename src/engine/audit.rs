//! Whether the engine's books agree with each other. Owns: nothing; looks at everything, for tests.

use super::Engine;
use super::conn::{Phase, flag};
use super::core::Core;

impl Engine {
    /// Checks the engine's own books: each connection that wants something is on a list, each timer belongs to somebody, counts are
    /// the lengths of what they count. For tests and fuzzers; takes time in proportion to what is open.
    ///
    /// # Errors
    /// What does not agree, in words: that would be a bug of this crate. In a forked child, the text of
    /// [`Error::Forked`](crate::Error::Forked).
    pub fn audit(&self) -> Result<(), String> {
        self.check_process().map_err(|error| error.to_string())?;
        self.core.audit()
    }
}

impl Core {
    fn audit(&self) -> Result<(), String> {
        let agree = |what: &str, counted: usize, booked: usize| match counted == booked {
            true => Ok(()),
            false => Err(format!("{what}: {counted} counted, {booked} booked")),
        };
        let conns = || self.conns.keys().filter_map(|key| self.conns.get(key).map(|conn| (key, conn)));
        let listeners = || self.listeners.keys().filter_map(|key| self.listeners.get(key));
        let told = conns().filter(|(_, conn)| conn.phase != Phase::Ghost && !conn.has(flag::SILENT)).count();
        agree("connections", told, self.live)?;
        let timers = conns().filter(|(_, conn)| conn.timer.is_some()).count()
            + listeners().filter(|listener| listener.timer.is_some()).count();
        agree("timers", timers + self.user_timers, self.wheel.len())?;
        agree("paused listeners", listeners().filter(|listener| listener.paused).count(), self.paused_listeners)?;
        let deferred = conns().map(|(_, conn)| conn.deferred as usize).sum();
        let pending = self.pending.iter().filter(|completion| self.conns.get(completion.conn.0).is_some()).count();
        agree("deferred completions", pending, deferred)?;
        for (key, conn) in conns() {
            let listed = self.staged.conns.contains(&key);
            if conn.has(flag::DIRTY) != listed {
                return Err(format!("connection {key:?}: marked {}, listed {listed}", conn.has(flag::DIRTY)));
            }
            if conn.has(flag::PARKED) && !self.parked.contains(&key) {
                return Err(format!("connection {key:?} waits for a buffer on no list"));
            }
            if conn.cancelled & !conn.ops != 0 {
                return Err(format!("connection {key:?}: cancels of operations that are not in flight"));
            }
        }
        Ok(())
    }
}
