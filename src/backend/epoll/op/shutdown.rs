//! Shutting down the write side. Owns: shutdown(2), which completes at once. Must not know: whether
//! the send queue is empty.

use super::super::EpollBackend;
use crate::backend::Started;
use crate::id::Key;
use crate::net::socket;

impl EpollBackend {
    pub(in super::super) fn shutdown_write(&mut self, key: Key) -> Started {
        self.stats.syscalls += 1;
        if let Some(fd) = &self.slot(key).fd {
            socket::shutdown_write(fd);
        }
        Started::Done
    }
}
