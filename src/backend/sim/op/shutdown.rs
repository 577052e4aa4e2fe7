//! Shutting down the write side. Owns: the start of a FIN. It completes at once.

use super::Net;
use crate::backend::sim::trace::Kind;
use crate::id::Key;

impl Net {
    pub(crate) fn shutdown_write(&mut self, engine: u32, key: Key) {
        self.trace.add(self.now, Kind::ShutdownWrite, engine, key.slot() as u64, 0);
        if let Some(id) = self.engines[engine as usize].conn(key) {
            self.send_fin(id);
        }
    }
}
