//! The end of a connection's output. Owns: shutdown(2). It is over when it returns, so there is
//! nothing to cancel. Must not know: whether all was sent.

use super::super::EpollBackend;
use crate::backend::Started;
use crate::id::Key;
use crate::net::socket;

impl EpollBackend {
    pub(in super::super) fn shut_down_output(&mut self, key: Key) -> Started {
        self.stats.syscalls += 1;
        if let Some(fd) = &self.slot(key).fd {
            socket::shutdown_write(fd);
        }
        Started::Done
    }
}
