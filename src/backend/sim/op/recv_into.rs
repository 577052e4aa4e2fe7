//! Receiving into the caller's buffer. Owns: the start of such a receive, and the copy into its
//! buffer. Invariant: the backend holds the buffer from the start to the completion. The network
//! treats it as any other receive (`recv.rs`), limited to the room of the buffer.

use crate::backend::sim::sock::RecvTarget;
use crate::backend::sim::{Buffers, Sim};
use crate::backend::{Operation, Started};
use crate::buf::RecvBuf;
use crate::id::Key;

impl Sim {
    pub(in crate::backend::sim) fn start_recv_into(
        &mut self,
        key: Key,
        mut recv_buf: Box<RecvBuf>,
    ) -> Started {
        let len = recv_buf.room().len().min(i32::MAX as usize);
        if !self.start_operation(|net, engine| net.start_recv(engine, key, RecvTarget::Buffer(len)))
        {
            return Started::NoRoom(Operation::RecvInto(recv_buf));
        }
        self.buffers.slot(key).recv_buf = Some(recv_buf);
        Started::InFlight
    }
}

impl Buffers {
    /// Appends received bytes to the caller's buffer of a slot.
    pub(in crate::backend::sim) fn copy_into(&mut self, slot: usize, bytes: &[u8]) {
        if let Some(recv_buf) = &mut self.slots[slot].recv_buf {
            recv_buf.copy_from(bytes);
        }
    }
}
