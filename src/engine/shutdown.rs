//! Shutdown of the write side. Owns: when the FIN is sent. Invariant: the FIN is sent once, after
//! the last queued byte, and nothing is queued after it was requested. Must not know how a backend
//! sends it.

use super::conn::{Phase, flag};
use super::{Core, Engine};
use crate::backend::{Backend, Operation};
use crate::error::Error;
use crate::id::{ConnId, Key};

impl Engine {
    /// Sends the FIN after the last queued byte, as shutdown(2) with SHUT_WR. Receiving continues.
    /// The connection ends when the peer's FIN is received too.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// use std::io::{Read, Write};
    /// let peer = std::thread::spawn(move || {
    ///     let mut request = String::new();
    ///     theirs.read_to_string(&mut request)?; // returns at the FIN
    ///     theirs.write_all(b"response")
    /// });
    /// engine.send(conn, "request")?;
    /// engine.shutdown_write(conn)?;
    /// engine.poll(&mut completions, None)?;
    /// let event = completions.pop().map(|completion| completion.event);
    /// assert!(matches!(event, Some(Event::Received(data)) if &data[..] == b"response"));
    /// # peer.join().unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shutdown_write(&mut self, id: ConnId) -> Result<(), Error> {
        let core = self.core_mut()?;
        core.conn_mut(id.0)?.set(flag::WRITE_SHUT);
        core.stage(id.0);
        Ok(())
    }
}

impl Core {
    pub(super) fn send_fin<B: Backend>(&mut self, backend: &mut B, key: Key) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.set(flag::FIN_SENT);
        // Without a wait for the peer's FIN the close follows at once, and it sends the FIN.
        if conn.phase != Phase::Closing || !self.config.fin_wait.is_zero() {
            backend.start(key, Operation::Shutdown);
        }
    }
}
