//! Shutdown: shutdown(2) sends the FIN. Owns: that call. Invariant: no SQE is used, because the
//! kernel always runs SHUTDOWN in a worker (seen on 6.18).

use crate::backend::Started;
use crate::backend::uring::Uring;
use crate::id::Key;
use crate::net::socket;

impl Uring {
    pub(in crate::backend::uring) fn start_shutdown(&mut self, key: Key) -> Started {
        self.stats.syscalls += 1;
        if let Some(fd) = &self.slot(key).fd {
            socket::shutdown_write(fd);
        }
        Started::Done
    }
}
