//! Receiving. Owns: a receive from its start to what its engine hears. Invariant: data
//! stays with its socket until the engine takes it.

use super::{CANCELED, Net, Notice, Sink, Told};
use crate::backend::OpKind;
use crate::backend::sim::faults::Fault;
use crate::backend::sim::sock::{Owner, Read, Recv, SockId};
use crate::backend::sim::trace::Kind;
use crate::error::Errno;
use crate::id::Key;

impl Net {
    pub(crate) fn start_recv(&mut self, engine: u32, key: Key, how: Recv) {
        let Some(id) = self.engines[engine as usize].conn(key) else {
            return self.notify(engine, Notice::Done(key, OpKind::Recv, Err(CANCELED)));
        };
        let sock = self.sock_mut(id).expect("listed while it is there");
        assert!(sock.recv.replace(how).is_none(), "one receive in flight per connection");
        self.touched(id);
    }

    /// True if a receive was armed.
    pub(super) fn disarm_recv(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].conn(key) else { return false };
        self.sock_mut(id).is_some_and(|sock| sock.recv.take().is_some())
    }

    pub(super) fn next_recv(
        &mut self,
        engine: u32,
        id: SockId,
        sink: &mut impl Sink,
    ) -> Option<Told> {
        let sock = self.sock_mut(id)?;
        sock.recv_told = false;
        match (sock.owner, sock.recv, sock.is_readable()) {
            (Owner::Engine(_, key), Some(how), true) => {
                Some(self.recv_now(engine, id, key, how, sink))
            }
            _ => None,
        }
    }

    fn recv_now(
        &mut self,
        engine: u32,
        id: SockId,
        key: Key,
        how: Recv,
        sink: &mut impl Sink,
    ) -> Told {
        let host = self.host_of_engine(engine);
        let has_data = self.sock(id).expect("just seen").rx.arrived() > 0;
        let room = match has_data && how == Recv::Stream && self.chance(host, Fault::Buffers) {
            true => None,
            false if has_data => sink.room(key, how),
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
            && how == Recv::Stream
            && !self.chance(host, Fault::MultishotEnd);
        if !more {
            self.sock_mut(id).expect("just read").recv = None;
        }
        self.touched(id);
        match read {
            Read::Bytes(bytes) => Told::Data { key, more, bytes },
            Read::End | Read::Nothing => Told::Done(key, OpKind::Recv, Ok(0)),
            Read::Failed(errno) => Told::Done(key, OpKind::Recv, Err(errno)),
        }
    }
}
