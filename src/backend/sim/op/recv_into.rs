//! Receiving into a caller's buffer. Owns: its start, and where its bytes go. Invariant: the buffer
//! is with the backend from the start until the completion. In the world it is a receive like any
//! other (`recv.rs`), of at most so many bytes.

use crate::backend::sim::sock::Recv;
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
        if !self.start_in_world(|net, engine| net.start_recv(engine, key, Recv::Window(len))) {
            return Started::NoRoom(Operation::RecvInto(recv_buf));
        }
        self.buffers.held(key).recv_buf = Some(recv_buf);
        Started::InFlight
    }
}

impl Buffers {
    /// The receive at hand goes to the buffer of a slot.
    pub(in crate::backend::sim) fn put_into(&mut self, slot: usize, bytes: &[u8]) {
        if let Some(recv_buf) = &mut self.held[slot].recv_buf {
            recv_buf.copy_from(bytes);
        }
    }
}
