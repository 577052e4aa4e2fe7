//! Engines in simulated worlds. Owns: how such an engine is created. Invariant: it uses no kernel
//! interface. Must not know how a world runs.

use super::Engine;
use crate::backend::sim::Sim;
use crate::backend::{AnyBackend, Parameters};
use crate::caps::Caps;
use crate::config::Config;
use crate::error::Error;
use crate::id::EngineNumberGuard;
use crate::info::{Info, Limits};
use crate::tier::Backend;
use crate::waker::WakerShared;
use std::sync::Arc;

impl Engine {
    /// Creates an engine in a simulated world; `attach` attaches its backend to the world. The
    /// environment, and the backend and tier of the configuration, have no effect.
    pub(crate) fn simulated(
        config: Config,
        attach: impl FnOnce(Parameters, Arc<WakerShared>) -> Result<Sim, Error>,
    ) -> Result<Engine, Error> {
        config.validate()?;
        let waker_shared = WakerShared::simulated();
        let number = EngineNumberGuard::new();
        let parameters = Parameters::new(&config, number.number(), true);
        let info = Info {
            backend: Backend::Sim,
            tier: None,
            fallback: None,
            notes: Vec::new(),
            ring_entries: (0, 0),
            buffers: parameters.buffers,
            limits: Limits { nofile: None, memlock_bytes: None },
            kernel: "simulated".to_owned(),
            caps: Caps::not_probed("the network is simulated"),
        };
        let sim = attach(parameters, Arc::clone(&waker_shared))?;
        Ok(Engine::from_parts(config, number, waker_shared, AnyBackend::Sim(Box::new(sim)), info))
    }
}
