//! Watching for a hang-up. Owns: a watch from its start to what its engine hears. Invariant: it
//! takes neither bytes nor the error from the socket.

use super::{CANCELED, Net, Notice};
use crate::backend::OpKind;
use crate::backend::sim::sock::{Owner, SockId};
use crate::id::Key;

impl Net {
    pub(crate) fn start_watch(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].conn(key) else {
            return self.notify(engine, Notice::Done(key, OpKind::Hangup, Err(CANCELED)));
        };
        let sock = self.sock_mut(id).expect("listed while it is there");
        assert!(!std::mem::replace(&mut sock.watched, true), "one watch at a time");
        self.hangup_touched(id);
    }

    /// The end of a socket's input came, or a watch was armed.
    pub(super) fn hangup_touched(&mut self, id: SockId) {
        let Some(sock) = self.sock_mut(id).filter(|sock| sock.watched && sock.has_hung_up()) else {
            return;
        };
        sock.watched = false;
        if let Owner::Engine(engine, key) = sock.owner {
            self.notify(engine, Notice::Done(key, OpKind::Hangup, Ok(0)));
        }
    }

    /// True if a watch was armed.
    pub(super) fn disarm_watch(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].conn(key) else { return false };
        self.sock_mut(id).is_some_and(|sock| std::mem::take(&mut sock.watched))
    }
}
