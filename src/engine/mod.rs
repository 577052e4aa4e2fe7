//! The engine: one per thread, pulled by its owner. Owns: the facade, and what keeps a backend and the [`Core`] together. The
//! logic is in the files beside this one, one subject each, and knows no backend.

mod accept;
mod audit;
mod close;
mod conn;
mod connect;
mod core;
mod dry;
mod fail;
mod foreign;
mod recv;
mod send;
mod spin;
mod teardown;
mod timers;
mod turn;

use self::core::Core;
use crate::backend::sim::Sim;
use crate::backend::{AnyBackend, Backend as _, Tuning, select, with_backend};
use crate::completion::Completions;
use crate::config::{Backend, Config};
use crate::error::Error;
use crate::id::ConnId;
use crate::info::Info;
use crate::leak::Leakable;
use crate::net::Addr;
use crate::stats::Stats;
use crate::waker::{Inbox, Waker};
use conn::Conn;
pub use connect::AdoptedId;
pub use dry::DryEngine;
use foreign::Watch;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// How many engines of this process were dropped while the kernel would not let go of their memory
/// in time (`Config::teardown_max`), or could not be trusted to have let go of it
/// ([`Error::EngineFailed`]). That memory was leaked, so that nothing is ever used after it is
/// freed.
pub fn leaked_engines() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// A completion networking engine. One per thread; it does not leave the thread that made it.
///
/// Calls only note what is wanted; [`Engine::poll`] hands it to the kernel. They may be made at any time, also from within the
/// loop over the completions of a poll.
///
/// Dropping an engine closes everything it has open, without flushing: call [`Engine::drain`] first where that matters.
/// If the owner of a payload panics when it is dropped, the panic goes on when all is closed.
///
/// # Forks
/// An engine belongs to the process that made it. In a forked child each call that returns a `Result`
/// answers [`Error::Forked`] (or [`SendError::Forked`](crate::SendError::Forked),
/// [`WriteError::Forked`](crate::WriteError::Forked)). The other calls answer as for an engine that has
/// nothing open, except those that only read the engine's own memory or a clock
/// ([`Engine::info`], [`Engine::stats`], [`Engine::now`]). Its [`Waker`]s do nothing.
///
/// Dropping it in a child does nothing: no payload is dropped, no descriptor closed, no memory
/// unmapped. The engine's descriptors are close-on-exec (adopted ones as they came), and stay open in
/// the child until it calls execve(2) or exits. A child that needs an engine makes one of its own,
/// before or after it drops the inherited one.
#[derive(Debug)]
pub struct Engine {
    core: Leakable<Core>,
    backend: Leakable<AnyBackend>,
    info: Info,
    watch: Option<Watch>,
    epoch: Instant,
}

impl Engine {
    /// Makes an engine.
    ///
    /// # Errors
    /// [`Error::Config`] for values that make no sense; [`Error::Unsupported`] if a backend, tier or capability was asked for by
    /// name and is not to be had; [`Error::Os`] if the process is out of descriptors or memory.
    pub fn new(config: Config) -> Result<Engine, Error> {
        config.validate()?;
        let config = config.with_environment()?;
        config.validate()?;
        let inbox = Inbox::new()?;
        let (backend, info) = select::open(&config, &inbox)?;
        Ok(Engine::on(config, inbox, backend, info))
    }

    /// An engine in a simulated world. Neither the environment nor a backend that the configuration names plays a part.
    pub(crate) fn simulated(
        config: Config,
        place: impl FnOnce(Tuning, Arc<Inbox>) -> Result<Sim, Error>,
    ) -> Result<Engine, Error> {
        config.validate()?;
        let inbox = Inbox::simulated();
        let tuning = Tuning::new(&config, true);
        let info = select::simulated(&tuning);
        let sim = place(tuning, Arc::clone(&inbox))?;
        Ok(Engine::on(config, inbox, AnyBackend::Sim(Box::new(sim)), info))
    }

    fn on(config: Config, inbox: Arc<Inbox>, backend: AnyBackend, info: Info) -> Engine {
        let epoch = with_backend!(&backend, backend => backend.epoch());
        let (core, backend) = (Leakable::new(Core::new(config, inbox)), Leakable::new(backend));
        Engine { core, backend, info, watch: None, epoch }
    }

    /// Each public call goes through this, or through one of the next three.
    #[inline]
    fn is_child(&self) -> bool {
        self.core.inbox.is_child()
    }

    /// For calls that a failed engine serves too.
    #[inline]
    fn check_process(&self) -> Result<(), Error> {
        if self.is_child() { Err(Error::Forked) } else { Ok(()) }
    }

    #[inline]
    fn check(&self) -> Result<(), Error> {
        self.check_process()?;
        self.core.check_failed()
    }

    /// The engine's state, in the process that made it and until it fails.
    #[inline]
    fn own(&mut self) -> Result<&mut Core, Error> {
        self.check()?;
        Ok(&mut self.core)
    }

    /// Hands what was staged to the kernel, waits until something happened or `timeout` has passed (`None`: for ever; zero: not at
    /// all), and adds what happened to `completions`, at most up to its capacity. Returns how many were added: a timeout that passes
    /// is `Ok(0)`. Signals do not end the wait.
    ///
    /// If `completions` is full already, nothing is waited for, and 0 returned.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child. [`Error::Simulation`] if the host of a simulated engine
    /// crashed, or nothing will ever happen in its world. [`Error::Os`] if the kernel refuses to go
    /// on; connections cannot cause that. [`Error::EngineFailed`] once the kernel reported
    /// something impossible and all of the last events were handed out.
    ///
    /// # Panics
    /// If the owner of a payload (of [`Bytes::from_owner`](bytes::Bytes::from_owner)) panics when it is
    /// dropped. What was reported until then is in `completions`, and the engine stays usable: no byte and
    /// no event is lost. Look at `completions`, and poll again.
    pub fn poll(&mut self, completions: &mut Completions, timeout: Option<Duration>) -> Result<usize, Error> {
        self.check_process()?;
        self.enter_foreign();
        self.refresh_clock();
        let deadline = timeout.map(|timeout| self.core.later(timeout));
        // What is told to others of the state of this engine must hold after a panic too.
        let result = catch_unwind(AssertUnwindSafe(
            || with_backend!(&mut *self.backend, backend => self.core.poll(&mut **backend, completions, deadline)),
        ));
        self.core.interrupted = result.is_err();
        self.leave_foreign();
        if let AnyBackend::Sim(sim) = &mut *self.backend {
            sim.note_deadline(self.core.next_deadline());
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The time by the engine's clock: the monotonic clock of the system, or that of the simulated world. For
    /// [`Engine::timer_at`], and for programs that are to run in both.
    pub fn now(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.clock())
    }

    /// True if a poll has something to do that is known without asking the kernel: something is staged, finished and not yet handed
    /// out, or a timer is due. For those who drive several engines from one loop; false does not mean that a poll finds nothing,
    /// except on the simulated backend.
    pub fn wants_poll(&self) -> bool {
        if self.is_child() {
            return false;
        }
        if self.core.failed.is_some() {
            return self.core.has_work();
        }
        let due = self.core.next_deadline().is_some_and(|deadline| deadline <= self.clock());
        let expected = matches!(&*self.backend, AnyBackend::Sim(sim) if sim.is_expected());
        due || expected || with_backend!(&*self.backend, backend => backend.has_next())
    }

    /// Receive buffers that are free now.
    pub fn free_buffers(&self) -> usize {
        if self.is_child() {
            return 0;
        }
        with_backend!(&*self.backend, backend => backend.free_buffers())
    }

    /// What the engine stands on, which capabilities it uses, and why not the others.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Counters since the engine was made.
    pub fn stats(&self) -> Stats {
        let backend = with_backend!(&*self.backend, backend => backend.stats());
        Stats {
            syscalls: backend.syscalls,
            sqes: backend.sqes,
            cqes: backend.cqes,
            unknown_completions: backend.unknown_completions,
            queue_overflows: backend.queue_overflows,
            heap_copies: backend.heap_copies,
            single_receives: backend.single_receives,
            late_receives: backend.late_receives,
            ..self.core.stats
        }
    }

    /// A handle that wakes this engine from other threads and from signal handlers.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.core.inbox))
    }

    /// Gives a connection a tag, which comes back with each of its completions from later polls.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn set_tag(&mut self, id: ConnId, tag: u64) -> Result<(), Error> {
        self.own()?.conn(id.0)?.tag = tag;
        Ok(())
    }

    /// The tag of a connection.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn tag(&self, id: ConnId) -> Result<u64, Error> {
        Ok(self.look(id)?.tag)
    }

    /// True if the id names a connection that was not yet told to be closed.
    pub fn is_live(&self, id: ConnId) -> bool {
        self.look(id).is_ok()
    }

    /// The number of connections: opened or accepted, and not yet told to be closed.
    pub fn connections(&self) -> usize {
        if self.is_child() { 0 } else { self.core.live }
    }

    /// The address of the peer. A system call.
    ///
    /// # Errors
    /// [`Error::Stale`], or what getpeername(2) answers.
    pub fn peer_addr(&self, id: ConnId) -> Result<Addr, Error> {
        self.look(id)?;
        with_backend!(&*self.backend, backend => backend.peer_addr(id.0))
            .map_err(|error| Error::os("getpeername", &error))
    }

    /// The address on this side. A system call.
    ///
    /// # Errors
    /// [`Error::Stale`], or what getsockname(2) answers.
    pub fn local_addr(&self, id: ConnId) -> Result<Addr, Error> {
        self.look(id)?;
        with_backend!(&*self.backend, backend => backend.local_addr(id.0))
            .map_err(|error| Error::os("getsockname", &error))
    }

    /// The descriptor of a connection, where there is one yet: for socket options. Reading from it, writing to it or closing it
    /// behind the engine's back breaks the order of bytes.
    pub fn fd(&self, id: ConnId) -> Option<BorrowedFd<'_>> {
        self.look(id).ok()?;
        with_backend!(&*self.backend, backend => backend.fd(id.0))
    }

    /// The connection behind an id, where [`Engine::own`] would answer.
    fn look(&self, id: ConnId) -> Result<&Conn, Error> {
        self.check()?;
        self.core.look(id.0)
    }

    fn wants_nonblocking(&self) -> bool {
        self.info.backend == Backend::Epoll
    }

    fn clock(&self) -> u64 {
        with_backend!(&*self.backend, backend => backend.now())
    }

    fn refresh_clock(&mut self) {
        self.core.now = self.clock();
    }

    fn nanoseconds_of(&self, when: Instant) -> u64 {
        u64::try_from(when.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}
