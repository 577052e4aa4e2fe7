//! Admission of connections and listeners. Owns: their limits, the number of connections that the
//! caller has an id of, the number of paused listeners, and whether the engine is closing.
//! Invariant: the limits are checked before a socket is opened. Must not know their states.

use super::Core;
use crate::error::Error;

#[derive(Debug)]
pub(super) struct Admission {
    connections_max: usize,
    listeners_max: usize,
    /// Connections reported to the caller and not yet closed.
    live: usize,
    paused_listeners: usize,
    closing: bool,
    /// The time at which `close_all` ends what is still open.
    close_all_deadline: u64,
}

impl Admission {
    pub(super) fn new(connections_max: usize, listeners_max: usize) -> Admission {
        let (live, paused_listeners) = (0, 0);
        Admission {
            connections_max,
            listeners_max,
            live,
            paused_listeners,
            closing: false,
            close_all_deadline: u64::MAX,
        }
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn add_conn(&mut self) {
        self.live += 1;
    }

    pub(super) fn remove_conn(&mut self) {
        self.live -= 1;
    }

    pub(super) fn listener_paused(&mut self) {
        self.paused_listeners += 1;
    }

    pub(super) fn listener_resumed(&mut self) {
        self.paused_listeners -= 1;
    }

    pub(super) fn paused_listeners(&self) -> usize {
        self.paused_listeners
    }

    pub(super) fn begin_close_all(&mut self, until: u64) {
        (self.closing, self.close_all_deadline) = (true, until);
    }

    /// `deadline`, but no later than the deadline of `close_all`.
    pub(super) fn clamp_deadline(&self, deadline: u64) -> u64 {
        deadline.min(self.close_all_deadline)
    }
}

impl Core {
    pub(super) fn is_full(&self) -> bool {
        self.endpoints.conns_len() >= self.admission.connections_max
    }

    pub(super) fn check_room_for_conn(&self) -> Result<(), Error> {
        if self.admission.closing {
            return Err(Error::Closing);
        }
        if self.is_full() {
            return Err(Error::Limit {
                limit: "connections_max",
                value: self.admission.connections_max,
            });
        }
        Ok(())
    }

    pub(super) fn check_room_for_listener(&self) -> Result<(), Error> {
        if self.admission.closing {
            return Err(Error::Closing);
        }
        if self.endpoints.listeners_len() >= self.admission.listeners_max {
            return Err(Error::Limit {
                limit: "listeners_max",
                value: self.admission.listeners_max,
            });
        }
        Ok(())
    }
}
