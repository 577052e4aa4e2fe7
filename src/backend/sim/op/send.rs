//! Sending. Owns: a send from its start to what its engine hears. Invariant: bytes are the world's
//! from the moment that they were taken; what was not taken is the engine's.

use super::{CANCELED, Net, Notice};
use crate::backend::sim::Sim;
use crate::backend::sim::faults::Fault;
use crate::backend::sim::sock::{Owner, SockId};
use crate::backend::sim::trace::Kind;
use crate::backend::{OpKind, Operation, SendBatch, Started};
use crate::id::Key;

impl Sim {
    pub(in crate::backend::sim) fn start_send(
        &mut self,
        key: Key,
        mut batch: SendBatch,
    ) -> Started {
        let max = self.parameters.gather_max;
        if !self.start_in_world(|net, engine| net.start_send(engine, key, batch.parts(max))) {
            return Started::NoRoom(Operation::Send(batch));
        }
        let given = batch.parts(max).map(<[u8]>::len).sum();
        batch.set_given(given);
        self.buffers.held(key).batch = Some(batch);
        Started::InFlight
    }
}

impl Net {
    pub(crate) fn start_send<'a>(
        &mut self,
        engine: u32,
        key: Key,
        parts: impl ExactSizeIterator<Item = &'a [u8]>,
    ) {
        let Some(id) = self.engines[engine as usize].conn(key) else {
            return self.notify(engine, Notice::Done(key, OpKind::Send, Err(CANCELED)));
        };
        assert!(
            !self.sock(id).expect("listed while it is there").send_waits,
            "one send in flight per connection"
        );
        let host = self.host_of_engine(engine);
        let result = match self.chance(host, Fault::SpuriousSend) {
            true => Ok(0),
            false => self.write(id, parts),
        };
        match result {
            Ok(0) if !self.is_writable(id) => {
                self.sock_mut(id).expect("still there").send_waits = true;
            }
            result => {
                let (kind, value) = match result {
                    Ok(taken) => (Kind::Sent, taken as u64),
                    Err(errno) => (Kind::SendFailed, errno.0 as u64),
                };
                self.trace.add(self.now, kind, engine, key.slot() as u64, value);
                if let Some(sock) = self.sock_mut(id).filter(|_| result.is_err()) {
                    sock.failure_untold = true;
                }
                self.notify(engine, Notice::Done(key, OpKind::Send, result));
            }
        }
    }

    /// Something about a socket changed: what waits for that goes on.
    pub(crate) fn touched(&mut self, id: SockId) {
        self.hangup_touched(id);
        let writable = self.sock(id).is_some_and(|sock| sock.send_waits) && self.is_writable(id);
        let Some(sock) = self.sock_mut(id) else { return };
        let Owner::Engine(engine, key) = sock.owner else { return };
        let readable = sock.recv.is_some() && !sock.recv_told && sock.is_readable();
        if readable {
            sock.recv_told = true;
        }
        if writable {
            sock.send_waits = false;
        }
        if readable {
            self.notify(engine, Notice::Recv(id));
        }
        if writable {
            // Nothing was taken: the engine starts it again, with all that was queued meanwhile.
            self.notify(engine, Notice::Done(key, OpKind::Send, Ok(0)));
        }
    }

    /// True if a send was armed.
    pub(super) fn disarm_send(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].conn(key) else { return false };
        let Some(sock) = self.sock_mut(id) else { return false };
        std::mem::take(&mut sock.send_waits) || sock.first_send.take().is_some()
    }

    /// An engine hears that its send failed: now the end of the stream may be told too.
    pub(super) fn failure_told(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].conn(key) else { return };
        if let Some(sock) = self.sock_mut(id).filter(|sock| sock.failure_untold) {
            sock.failure_untold = false;
            self.touched(id);
        }
    }
}
