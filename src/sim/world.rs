//! Simulated worlds. Owns: [`World`], the handle of the thread that created a world. Invariant: the
//! world ends, and all its programs with it, when the handle is dropped. Must not know: how the
//! network and the scheduler work (`backend/sim`).

use super::{Action, Fault, Faults, Host, Link, Program};
use crate::backend::sim::{Script, Shared, Until, nanoseconds};
use crate::{Config, Engine, Error};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A simulated world. It stays on the thread that created it; programs get [`Host`]s. Dropping it
/// ends all programs that still run: their polls fail with [`Error::Simulation`].
#[derive(Debug)]
pub struct World {
    /// Access to the world, as a host has it. Its index is not used.
    inner: Host,
    not_send: PhantomData<*const ()>,
}

/// How many things are open in a world, for tests that check for leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Sockets of connections: of engines, of [`Peer`](super::Peer)s, and in accept queues.
    pub sockets: usize,
    /// Listeners.
    pub listeners: usize,
    /// Descriptors that engines hold.
    pub descriptors: usize,
}

impl World {
    /// A world without hosts. All its random numbers come from `seed`.
    pub fn new(seed: u64) -> World {
        let inner = Host {
            world: Shared::new(seed),
            threads: Arc::default(),
            epoch: Instant::now(),
            index: 0,
        };
        World { inner, not_send: PhantomData }
    }

    fn shared(&self) -> &Shared {
        &self.inner.world
    }

    /// Adds a host. The first has the addresses `10.0.0.1` and `fd00::1`, the second `10.0.0.2` and
    /// `fd00::2`, and so on. Each has loopback addresses of its own.
    pub fn host(&self, name: &str) -> Host {
        let index = self.shared().lock().net.add_host(name);
        Host { index, ..self.inner.clone() }
    }

    /// An engine on a host: as [`Host::engine`].
    ///
    /// # Errors
    /// [`Error::Config`]; [`Error::Simulation`] while the host is down.
    pub fn engine(&self, host: &Host, config: Config) -> Result<Engine, Error> {
        host.engine(config)
    }

    /// Starts a program on a thread of its own. It first runs when the others wait.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        program: impl FnOnce() -> T + Send + 'static,
    ) -> Program<T> {
        self.inner.spawn(name, program)
    }

    /// Replaces the fault plan. Default: no faults.
    pub fn set_faults(&self, faults: Faults) {
        self.shared().lock().net.apply(Script::Faults(faults));
    }

    /// The fault plan.
    pub fn faults(&self) -> Faults {
        self.shared().lock().net.faults.clone()
    }

    /// Switches one fault off.
    pub fn switch_off(&self, fault: Fault) {
        let net = &mut self.shared().lock().net;
        net.faults = net.faults.clone().without(fault);
    }

    /// Sets the link between any two hosts, also between hosts that are added later.
    pub fn set_default_link(&self, link: Link) {
        self.shared().lock().net.set_default_link(link);
    }

    /// Sets the link between two hosts, or the loopback link of one host (`a` equal to `b`).
    pub fn set_link(&self, a: &Host, b: &Host, link: Link) {
        self.act(Action::Link(a.clone(), b.clone(), link));
    }

    /// Drops packets to this address, so that connects to it time out (ETIMEDOUT). A connect to any
    /// other address without a host fails with EHOSTUNREACH.
    pub fn black_hole(&self, ip: IpAddr) {
        self.shared().lock().net.black_holes.insert(ip);
    }

    /// Executes an action now.
    ///
    /// # Panics
    /// If it names a host of another world.
    pub fn act(&self, action: Action) {
        self.shared().lock().net.apply(action.script(&self.inner.world));
    }

    /// Executes an action at an exact time, `when` after the start of the world. A time in the past
    /// counts as now.
    ///
    /// # Panics
    /// If it names a host of another world.
    pub fn at(&self, when: Duration, action: Action) {
        self.shared().lock().net.schedule(nanoseconds(when), action.script(&self.inner.world));
    }

    /// Time since the start of the world.
    pub fn now(&self) -> Duration {
        self.inner.now()
    }

    /// Executes the next event, or moves the clock to the next time at which an engine must be
    /// polled (for a timer or a staged operation). False if there is neither. For callers that poll
    /// their engines with a timeout of zero; programs do not run meanwhile. While
    /// [`World::has_ready`] is true, poll first: further steps delay the completions that are
    /// ready.
    pub fn step(&self) -> bool {
        self.shared().step()
    }

    /// True if an engine must be polled now: a completion is ready, a timer is due, or an operation
    /// is staged.
    pub fn has_ready(&self) -> bool {
        let net = &self.shared().lock().net;
        let due = |deadline: Option<u64>| deadline.is_some_and(|deadline| deadline <= net.now);
        net.engines.iter().any(|engine| engine.ready_len() > 0 || due(engine.deadline))
    }

    /// Waits, and lets the programs run.
    ///
    /// # Panics
    /// If the calling thread runs no program of this world.
    pub fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration);
    }

    /// Lets the programs run until `done` returns true. It is called after each event and each
    /// switch between programs.
    ///
    /// # Errors
    /// [`Error::Simulation`] if no event is left and `done` returns false.
    pub fn run_until(&self, mut done: impl FnMut() -> bool) -> Result<(), Error> {
        loop {
            let seen = self.shared().lock().progress;
            if done() {
                return Ok(());
            }
            self.shared().wait(Until::Progress(seen), None).map_err(Error::Simulation)?;
        }
    }

    /// A hash over all that has happened so far. Equal for equal runs, on every machine.
    pub fn trace_hash(&self) -> u64 {
        self.shared().lock().net.trace.hash()
    }

    /// Keeps the last `entries` entries of the trace as text. Default: none. The hash covers all
    /// entries in each case.
    pub fn keep_trace(&self, entries: usize) {
        self.shared().lock().net.trace.keep(entries);
    }

    /// The kept entries of the trace: one a line, with the time in seconds. Hosts, engines and
    /// programs are numbered from 0 in the order of their creation. Program 0 is the thread that
    /// created the world.
    pub fn trace(&self) -> String {
        self.shared().lock().net.trace.to_string()
    }

    /// Adds a line to the trace, if entries are kept. The hash does not cover it.
    pub fn note(&self, text: &str) {
        self.inner.note(text);
    }

    /// Counts what is open.
    pub fn census(&self) -> Census {
        let (sockets, listeners, descriptors) = self.shared().lock().net.census();
        Census { sockets, listeners, descriptors }
    }

    /// How many completions engines have taken so far.
    pub fn completions(&self) -> u64 {
        self.shared().lock().net.completions
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shared().end();
        let threads =
            std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}
