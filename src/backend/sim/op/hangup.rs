//! Waiting for a hang-up. Owns: a `WatchHangup` from its start to its completion. Invariant: it
//! takes neither bytes nor the error from the socket.

use super::{CANCELED, Net, Ready};
use crate::backend::OpKind;
use crate::backend::sim::sock::{Owner, SockId};
use crate::id::Key;

impl Net {
    pub(crate) fn start_hangup(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].conn(key) else {
            return self.make_ready(engine, Ready::Completed(key, OpKind::Hangup, Err(CANCELED)));
        };
        let sock = self.sock_mut(id).expect("a key is removed before its socket");
        assert!(!std::mem::replace(&mut sock.hangup_armed, true), "a WatchHangup is in flight");
        self.check_hangup(id);
    }

    /// The peer hung up, or a `WatchHangup` was armed.
    pub(super) fn check_hangup(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id).filter(|sock| sock.hangup_armed && sock.has_hung_up())
        else {
            return;
        };
        sock.hangup_armed = false;
        if let Owner::Engine(engine, key) = sock.owner {
            self.make_ready(engine, Ready::Completed(key, OpKind::Hangup, Ok(0)));
        }
    }

    /// True if a `WatchHangup` was armed.
    pub(super) fn disarm_hangup(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].conn(key) else { return false };
        self.sock_mut(id).is_some_and(|sock| std::mem::take(&mut sock.hangup_armed))
    }
}
