//! Sending. Owns: a send from its start to its completion. Invariant: bytes that were taken are
//! copied into the network; the engine keeps the others.

use super::{CANCELED, Net, Ready};
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
        if !self.start_operation(|net, engine| net.start_send(engine, key, batch.parts(max))) {
            return Started::NoRoom(Operation::Send(batch));
        }
        let given = batch.parts(max).map(<[u8]>::len).sum();
        batch.set_given(given);
        self.buffers.slot(key).batch = Some(batch);
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
            return self.make_ready(engine, Ready::Completed(key, OpKind::Send, Err(CANCELED)));
        };
        assert!(
            !self.sock(id).expect("a key is removed before its socket").send_armed,
            "a send is in flight"
        );
        let host = self.host_of_engine(engine);
        let result = match self.draw_fault(host, Fault::SpuriousSend) {
            true => Ok(0),
            false => self.write(id, parts),
        };
        match result {
            Ok(0) if !self.is_writable(id) => {
                self.sock_mut(id).expect("found above").send_armed = true;
            }
            result => {
                let (kind, value) = match result {
                    Ok(taken) => (Kind::Sent, taken as u64),
                    Err(errno) => (Kind::SendFailed, errno.0 as u64),
                };
                self.trace.add(self.now, kind, engine, key.slot() as u64, value);
                if let Some(sock) = self.sock_mut(id).filter(|_| result.is_err()) {
                    sock.send_error_pending = true;
                }
                self.make_ready(engine, Ready::Completed(key, OpKind::Send, result));
            }
        }
    }

    /// The state of a socket changed: completes or queues the operations that waited for it.
    pub(crate) fn sock_changed(&mut self, id: SockId) {
        self.check_hangup(id);
        let writable = self.sock(id).is_some_and(|sock| sock.send_armed) && self.is_writable(id);
        let Some(sock) = self.sock_mut(id) else { return };
        let Owner::Engine(engine, key) = sock.owner else { return };
        let readable = sock.recv.is_some() && !sock.recv_queued && sock.is_readable();
        if readable {
            sock.recv_queued = true;
        }
        if writable {
            sock.send_armed = false;
        }
        if readable {
            self.make_ready(engine, Ready::Recv(id));
        }
        if writable {
            // 0 bytes: the engine starts a send again, with all that was queued meanwhile.
            self.make_ready(engine, Ready::Completed(key, OpKind::Send, Ok(0)));
        }
    }

    /// True if a send was armed.
    pub(super) fn disarm_send(&mut self, engine: u32, key: Key) -> bool {
        let Some(id) = self.engines[engine as usize].conn(key) else { return false };
        let Some(sock) = self.sock_mut(id) else { return false };
        std::mem::take(&mut sock.send_armed) || sock.first_send.take().is_some()
    }

    /// The engine takes the completion of a failed send: a receive may now find the end of the
    /// stream.
    pub(super) fn send_error_reported(&mut self, engine: u32, key: Key) {
        let Some(id) = self.engines[engine as usize].conn(key) else { return };
        if let Some(sock) = self.sock_mut(id).filter(|sock| sock.send_error_pending) {
            sock.send_error_pending = false;
            self.sock_changed(id);
        }
    }
}
