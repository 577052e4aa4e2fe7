//! What a request costs in the engine alone, without a kernel below: for benchmarks. Owns: an
//! engine's core on the dry backend, and connections that echo. Hidden from the documentation:
//! nothing for users, and no promise.

use super::Core;
use super::conn::{Conn, Phase};
use crate::backend::Tuning;
use crate::backend::dry::Dry;
use crate::buf::{Payload, Pool};
use crate::completion::{Completions, Event};
use crate::config::Config;
use crate::error::Error;
use crate::id::{ConnId, EngineNumberGuard};
use crate::options::SocketOptions;
use crate::waker::Inbox;
use std::time::Instant;

/// Connections whose every send comes back as received bytes at once.
#[derive(Debug)]
pub struct DryEngine {
    core: Core,
    backend: Dry,
    completions: Completions,
    conns: Vec<ConnId>,
}

impl DryEngine {
    /// So many open connections. The caller gives the time, since nothing in here reads a clock.
    ///
    /// # Errors
    /// No memory for the receive pool.
    pub fn new(config: Config, conns: usize, now: Instant) -> Result<DryEngine, Error> {
        config.validate()?;
        let number = EngineNumberGuard::new();
        let tuning = Tuning::new(&config, number.number(), false);
        let (count, size) = tuning.buffers;
        let pool = Pool::new(count, size, tuning.low_watermark)
            .map_err(|error| Error::os("mmap", &error))?;
        let backend = Dry::new(pool, tuning.gather_max, now);
        let mut core = Core::new(config, number, Inbox::simulated(), false);
        let open = |core: &mut Core| {
            let key = core.endpoints.insert_conn(Conn::new(
                Phase::Open,
                0,
                &SocketOptions::default(),
                None,
            ));
            core.admission.came();
            core.mark_dirty(key);
            ConnId(key)
        };
        let conns = (0..conns).map(|_| open(&mut core)).collect();
        Ok(DryEngine { core, backend, completions: Completions::with_capacity(1024), conns })
    }

    /// Sends a payload on each connection, and takes the answers: a request is a send, its
    /// completion, and a receive. Returns how many bytes came back.
    ///
    /// # Errors
    /// None: the signature is that of a poll.
    pub fn round(&mut self, mut payload: impl FnMut() -> Payload) -> Result<usize, Error> {
        for &conn in &self.conns {
            let _ = self.core.send(conn.0, payload(), None);
        }
        let mut received = 0;
        loop {
            let count = self.core.poll(&mut self.backend, &mut self.completions, Some(0))?;
            for completion in self.completions.drain() {
                if let Event::Received(data) = completion.event {
                    received += data.len();
                }
            }
            if count == 0 {
                return Ok(received);
            }
        }
    }
}
