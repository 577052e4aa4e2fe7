//! The operations, one a file: how each is started and cancelled, its system call, and what the
//! result means for readiness. Owns: the functions that all of them use. Must not know: the order
//! in which slots are served.

mod accept;
mod close;
mod connect;
mod hangup;
mod recv;
mod recv_into;
mod send;
mod shutdown;

pub(super) use connect::ConnectRetry;
pub(super) use recv_into::RecvBufs;

use super::EpollBackend;
use crate::backend::{OpKind, OpResult};
use crate::error::Errno;
use crate::id::Key;

/// The result of an operation that was cancelled.
fn canceled() -> OpResult {
    OpResult::failed(Errno(libc::ECANCELED))
}

impl EpollBackend {
    /// Cancels an operation, if it is armed.
    pub(super) fn cancel_operation(&mut self, key: Key, kind: OpKind) {
        if self.find(key).is_none() {
            return;
        }
        match kind {
            OpKind::Connect => self.cancel_connect(key),
            OpKind::Accept => self.cancel_accept(key),
            OpKind::Recv => {
                self.cancel_recv(key);
                self.cancel_recv_into(key);
            }
            OpKind::Send => self.cancel_send(key),
            OpKind::Hangup => self.cancel_hangup(key),
            OpKind::Close => {}
        }
    }

    /// Makes a system call, and repeats it while it fails with EINTR.
    #[inline(always)]
    fn retry_interrupted(&mut self, call: impl Fn() -> isize) -> Result<usize, Errno> {
        loop {
            self.stats.syscalls += 1;
            match usize::try_from(call()).map_err(|_| Errno::last()) {
                Err(Errno(libc::EINTR)) => continue,
                result => return result,
            }
        }
    }

    /// Disarms an operation. False if it was not armed.
    fn disarm(&mut self, key: Key, operation: u16) -> bool {
        let slot = self.slot(key);
        let armed = slot.state & operation != 0;
        slot.state &= !operation;
        armed
    }
}
