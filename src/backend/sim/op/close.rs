//! Closing. Owns: the end of a key. Invariant: no other operation of the key is in flight when a
//! close starts.

use super::{Net, Ready};
use crate::backend::sim::engine_state::Endpoint;
use crate::backend::sim::sock::{ListenId, SockId};
use crate::backend::sim::trace::Kind;
use crate::backend::{CloseMode, OpKind};
use crate::id::Key;

impl Net {
    pub(crate) fn start_close(&mut self, engine: u32, key: Key, mode: CloseMode) {
        let endpoint = self.engines[engine as usize].remove(key);
        let kind = match (&endpoint, mode) {
            (Some(Endpoint::Listener(_)), _) => Kind::CloseListener,
            (_, CloseMode::Reset) => Kind::Abort,
            (_, CloseMode::Orderly) => Kind::Close,
        };
        self.trace.add(self.now, kind, engine, key.slot() as u64, 0);
        match endpoint {
            Some(Endpoint::Conn(id)) => self.close_conn(id, mode),
            Some(Endpoint::Listener(id)) => self.close_idle_listener(id),
            None => {}
        }
        self.make_ready(engine, Ready::Completed(key, OpKind::Close, Ok(0)));
    }

    fn close_conn(&mut self, id: SockId, mode: CloseMode) {
        let sock = self.sock(id).expect("a key is removed before its socket");
        let sends = sock.send_armed || sock.first_send.is_some();
        let busy = sock.recv.is_some() || sends || sock.connect_armed || sock.hangup_armed;
        assert!(!busy, "an operation is in flight at the start of a close");
        self.close(id, mode == CloseMode::Reset);
    }

    fn close_idle_listener(&mut self, id: ListenId) {
        let armed = self.listener(id).is_some_and(|listen| listen.armed);
        assert!(!armed, "an accept is in flight at the start of a close");
        self.close_listener(id);
    }
}
