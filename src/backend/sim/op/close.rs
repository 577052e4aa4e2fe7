//! Closing. Owns: the end of a key. Invariant: no operation is in flight when a close starts.

use super::{Net, Notice};
use crate::backend::sim::sock::{ListenId, SockId};
use crate::backend::sim::trace::Kind;
use crate::backend::sim::view::What;
use crate::backend::{CloseMode, OpKind};
use crate::id::Key;

impl Net {
    pub(crate) fn start_close(&mut self, engine: u32, key: Key, mode: CloseMode) {
        let what = self.engines[engine as usize].take(key);
        let kind = match (&what, mode) {
            (Some(What::Listener(_)), _) => Kind::CloseListener,
            (_, CloseMode::Reset) => Kind::Abort,
            (_, CloseMode::Orderly) => Kind::Close,
        };
        self.trace.add(self.now, kind, engine, key.slot() as u64, 0);
        match what {
            Some(What::Conn(id)) => self.close_conn(id, mode),
            Some(What::Listener(id)) => self.close_idle_listener(id),
            None => {}
        }
        self.notify(engine, Notice::Done(key, OpKind::Close, Ok(0)));
    }

    fn close_conn(&mut self, id: SockId, mode: CloseMode) {
        let sock = self.sock(id).expect("listed while it is there");
        let sends = sock.send_waits || sock.first_send.is_some();
        let busy = sock.recv.is_some() || sends || sock.connect_armed || sock.watched;
        assert!(!busy, "no operation is in flight when a close starts");
        self.close(id, mode == CloseMode::Reset);
    }

    fn close_idle_listener(&mut self, id: ListenId) {
        let armed = self.listener(id).is_some_and(|listen| listen.armed);
        assert!(!armed, "no accept is in flight when a close starts");
        self.close_listener(id);
    }
}
