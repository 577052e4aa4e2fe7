//! Who may come in. Owns: the limits of connections and listeners, how many connections the caller
//! knows, how many listeners are paused, and whether the engine is closing. Invariant: a call that
//! asks for room gets it before anything is opened.

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
    /// When `close_all` gives up on what is still open.
    closing_until: u64,
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
            closing_until: u64::MAX,
        }
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn came(&mut self) {
        self.live += 1;
    }

    pub(super) fn left(&mut self) {
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
        (self.closing, self.closing_until) = (true, until);
    }

    /// A deadline, but no later than the end of `close_all`.
    pub(super) fn within_close_all(&self, deadline: u64) -> u64 {
        deadline.min(self.closing_until)
    }
}

impl Core {
    pub(super) fn is_full(&self) -> bool {
        self.endpoints.conns_len() >= self.admission.connections_max
    }

    pub(super) fn room_for_conn(&self) -> Result<(), Error> {
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

    pub(super) fn room_for_listener(&self) -> Result<(), Error> {
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
