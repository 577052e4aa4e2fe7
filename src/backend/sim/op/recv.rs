//! Receiving. Owns: a receive from its start to its completion. Invariant: data stays with its
//! socket until the engine takes the completion.

use super::{CANCELED, Net, NetOutcome, Ready, Sink};
use crate::backend::OpKind;
use crate::backend::sim::faults::Fault;
use crate::backend::sim::sock::{Owner, Read, RecvTarget, SockId};
use crate::backend::sim::trace::Kind;
use crate::error::Errno;
use crate::id::Key;

impl Net {
    pub(crate) fn start_recv(&mut self, engine: u32, key: Key, target: RecvTarget) {
        let Some(id) = self.engines[engine as usize].conn(key) else {
            return self.make_ready(engine, Ready::Completed(key, OpKind::Recv, Err(CANCELED)));
        };
        let sock = self.sock_mut(id).expect("a key is removed before its socket");
        assert!(sock.recv.replace(target).is_none(), "a receive is in flight");
        self.sock_changed(id);
    }

    /// True if a receive was armed.
    pub(super) fn disarm_recv(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].conn(key) else { return false };
        self.sock_mut(id).is_some_and(|sock| sock.recv.take().is_some())
    }

    /// Tries an armed receive. `None` if it was cancelled or nothing is readable.
    pub(super) fn next_recv(
        &mut self,
        engine: u32,
        id: SockId,
        sink: &mut impl Sink,
    ) -> Option<NetOutcome> {
        let sock = self.sock_mut(id)?;
        sock.recv_queued = false;
        match (sock.owner, sock.recv, sock.is_readable()) {
            (Owner::Engine(_, key), Some(target), true) => {
                Some(self.recv_now(engine, id, key, target, sink))
            }
            _ => None,
        }
    }

    fn recv_now(
        &mut self,
        engine: u32,
        id: SockId,
        key: Key,
        target: RecvTarget,
        sink: &mut impl Sink,
    ) -> NetOutcome {
        let host = self.host_of_engine(engine);
        let has_data = self.sock(id).expect("found by next_recv").rx.arrived() > 0;
        let room =
            match has_data && target == RecvTarget::Pool && self.draw_fault(host, Fault::Buffers) {
                true => None,
                false if has_data => sink.room(key, target),
                false => Some(0),
            };
        let read = match room {
            Some(max) => self.read(id, max, |bytes| sink.put(bytes)),
            None => Read::Failed(Errno(libc::ENOBUFS)),
        };
        let (kind, value) = match read {
            Read::Bytes(len) => (Kind::Received, len as u64),
            Read::End | Read::Nothing => (Kind::EndOfStream, 0),
            Read::Failed(errno) => (Kind::RecvFailed, errno.0 as u64),
        };
        self.trace.add(self.now, kind, engine, key.slot() as u64, value);
        let more = matches!(read, Read::Bytes(_))
            && target == RecvTarget::Pool
            && !self.draw_fault(host, Fault::MultishotEnd);
        if !more {
            self.sock_mut(id).expect("found by next_recv").recv = None;
        }
        self.sock_changed(id);
        match read {
            Read::Bytes(bytes) => NetOutcome::Received { key, more, bytes },
            Read::End | Read::Nothing => NetOutcome::Completed(key, OpKind::Recv, Ok(0)),
            Read::Failed(errno) => NetOutcome::Completed(key, OpKind::Recv, Err(errno)),
        }
    }
}
