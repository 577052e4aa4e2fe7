//! The engine. Owns: the public [`Engine`] and its state, the [`Core`]. Invariant: each part of the
//! core keeps its own invariant, in a file of its own. Must not know: descriptors, system calls and
//! clocks; the core is generic over the backend.
//!
//! | file | subject |
//! |---|---|
//! | `connect` `accept` `recv` `recv_into` `send` `hangup` `shutdown` `close` | one operation each: its public calls, when it is started, how its completion is handled |
//! | `adopt` `timers` `inspect` `poll_fd` | the other public calls |
//! | `turn` `deliver` `staging` `parking` `spin` | a poll: its steps, the order of events, the lists of endpoints that have something to submit or wait for a buffer |
//! | `endpoints` `conn` `admission` | the open connections and listeners, and their limits |
//! | `failure` `teardown` | the failure of an engine, and its drop |
//! | `simulated` `audit` | engines on a simulated network, and consistency checks (feature `sim`) |

mod accept;
mod admission;
mod adopt;
#[cfg(feature = "sim")]
mod audit;
mod close;
mod conn;
mod connect;
mod deliver;
mod endpoints;
mod failure;
mod hangup;
mod inspect;
mod parking;
mod poll_fd;
mod recv;
mod recv_into;
mod send;
mod shutdown;
#[cfg(feature = "sim")]
mod simulated;
mod spin;
mod staging;
mod teardown;
mod timers;
mod turn;

use crate::backend::{AnyBackend, Backend as _, select, with_backend};
use crate::buf::{RecvBufPool, SendMemory};
use crate::caps::Capability;
use crate::completion::Completions;
use crate::config::Config;
use crate::error::Error;
use crate::id::{ConnId, EngineNumberGuard, Key};
use crate::info::Info;
use crate::leak::Leakable;
use crate::stats::Stats;
use crate::tier::Backend;
use crate::waker::{Waker, WakerShared};
use admission::Admission;
pub use adopt::AdoptedId;
use conn::Conn;
use deliver::Delivery;
use endpoints::Endpoints;
use parking::Parking;
use poll_fd::PollFd;
use spin::Spin;
use staging::Staging;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use timers::Timers;

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// The number of engines of this process whose drop leaked memory: operations were still in flight
/// after `Config::teardown_max`, or the engine had failed. The memory of these operations is
/// leaked, because the kernel may still use it.
pub fn leaked_engines() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// A completion networking engine. It is neither `Send` nor `Sync`: it stays on the thread that
/// created it.
///
/// Calls stage operations; [`Engine::poll`] submits them. Calls may be made at any time, also while
/// iterating over the completions of a poll.
///
/// Dropping an engine closes all connections and listeners without sending what is queued. Call
/// [`Engine::close_all`] first to send it.
///
/// # Forks
/// An engine belongs to the process that created it. In a forked child each call that returns a
/// `Result` fails with [`Error::Forked`] (or [`SendError::Forked`](crate::SendError::Forked),
/// [`WriteError::Forked`](crate::WriteError::Forked)). The other calls return what they return for
/// an engine without connections, except those that only read the engine's memory or a clock
/// ([`Engine::info`], [`Engine::stats`], [`Engine::now`]). Its [`Waker`]s do nothing.
///
/// Dropping it in a child does nothing: it drops no payload, closes no descriptor and unmaps no
/// memory. The engine's descriptors are close-on-exec (adopted descriptors keep their flag), and
/// stay open in the child until it calls execve(2) or exits. A child can create an engine of its
/// own, before or after it drops the inherited one.
///
/// ```
/// use proactor::{Completions, Config, ConnectOptions, Engine, Event, ListenOptions};
/// use std::net::Ipv4Addr;
///
/// let mut engine = Engine::new(Config::default())?;
/// let mut completions = Completions::with_capacity(256);
/// let listener = engine.listen((Ipv4Addr::LOCALHOST, 0), ListenOptions::default())?;
/// let client = engine.connect(engine.listener_addr(listener)?, ConnectOptions::default())?;
/// engine.send(client, "ping")?;
///
/// let mut closed = 0;
/// while closed < 2 {
///     engine.poll(&mut completions, None)?;
///     for completion in completions.drain() {
///         match completion.event {
///             // The server echoes, the client closes after the response.
///             Event::Received(data) if completion.conn != client => {
///                 engine.send(completion.conn, data)?;
///             }
///             Event::Received(data) => {
///                 assert_eq!(&data[..], b"ping");
///                 engine.close(client)?;
///             }
///             Event::ReadClosed => engine.close(completion.conn)?,
///             Event::Closed(_) => closed += 1,
///             _ => {}
///         }
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    core: Leakable<Core>,
    backend: Leakable<AnyBackend>,
    info: Info,
    poll_fd: Option<PollFd>,
    epoch: Instant,
}

/// The backend has no room for another operation before its next wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Full;

/// The state of an engine without its backend. Invariant: an endpoint that has something to submit
/// is staged; one that has ended is not in the table.
#[derive(Debug)]
struct Core {
    config: Config,
    number: EngineNumberGuard,
    endpoints: Endpoints,
    admission: Admission,
    staging: Staging,
    parking: Parking,
    delivery: Delivery,
    timers: Timers,
    send_memory: SendMemory,
    recv_bufs: RecvBufPool,
    /// Tags of the payloads that a completed send took, until their events are emitted. Kept for
    /// its capacity; empty otherwise.
    sent_tags: Vec<u64>,
    /// The least size in bytes of a payload that is sent with zero-copy; `usize::MAX` if zero-copy
    /// is off.
    zero_copy_threshold: usize,
    stats: Stats,
    /// Nanoseconds since the backend's epoch, read once or twice per turn.
    now: u64,
    spin: Spin,
    waker_shared: Arc<WakerShared>,
    /// Set when the backend has failed: the claim of the kernel that did not hold.
    failed: Option<&'static str>,
    /// The last poll panicked: its turn is incomplete, and the next poll must not wait.
    interrupted: bool,
}

impl Engine {
    /// Creates an engine.
    ///
    /// # Errors
    /// [`Error::Config`] if a value is invalid; [`Error::Unsupported`] if a backend, tier or
    /// capability that the configuration requires is unavailable; [`Error::Os`] if the process is
    /// out of descriptors or memory.
    ///
    /// ```
    /// use proactor::{Backend, Config, Engine};
    /// let engine = Engine::new(Config::default().backend(Backend::Epoll))?;
    /// assert_eq!(engine.info().backend, Backend::Epoll);
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn new(config: Config) -> Result<Engine, Error> {
        config.validate()?;
        let config = config.with_environment()?;
        config.validate()?;
        let waker_shared = WakerShared::new()?;
        let number = EngineNumberGuard::new();
        let (backend, info) = select::open(&config, number.number(), &waker_shared)?;
        Ok(Engine::from_parts(config, number, waker_shared, backend, info))
    }

    fn from_parts(
        config: Config,
        number: EngineNumberGuard,
        waker_shared: Arc<WakerShared>,
        backend: AnyBackend,
        info: Info,
    ) -> Engine {
        let epoch = with_backend!(&backend, backend => backend.epoch());
        let zero_copy = info.caps.uses(Capability::SendZc);
        let core = Leakable::new(Core::new(config, number, waker_shared, zero_copy));
        let backend = Leakable::new(backend);
        Engine { core, backend, info, poll_fd: None, epoch }
    }

    /// True in a forked child. Each public call goes through this, [`Engine::check_usable`] or
    /// [`Engine::core_mut`].
    #[inline]
    fn is_child(&self) -> bool {
        self.core.waker_shared.is_child()
    }

    #[inline]
    fn check_usable(&self) -> Result<(), Error> {
        match self.core.failed {
            _ if self.is_child() => Err(Error::Forked),
            Some(violation) => Err(Error::EngineFailed(violation)),
            None => Ok(()),
        }
    }

    /// The engine's state, if it may be used.
    #[inline]
    fn core_mut(&mut self) -> Result<&mut Core, Error> {
        self.check_usable()?;
        Ok(&mut self.core)
    }

    /// Submits the staged operations, waits for events, and appends them to `completions`, up to
    /// its capacity. The wait ends when there is an event or `timeout` has elapsed (`None`: no
    /// timeout; zero: no wait). Returns the number of events appended: `Ok(0)` after a timeout.
    /// Signals do not end the wait.
    ///
    /// If `completions` is already full, it does not wait, and returns 0.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child. `Error::Simulation` if the host of a simulated engine
    /// crashed, or no event can happen in its world any more. [`Error::Os`] if the kernel refuses
    /// to submit or to wait; no connection can cause that. [`Error::EngineFailed`] if the kernel
    /// reported something impossible, after all connections were reported closed.
    ///
    /// # Panics
    /// If the `drop` of a payload panics. The engine stays usable: no event is lost, and those
    /// already appended to `completions` stay there.
    ///
    /// ```
    /// use proactor::{Completions, Config, Engine};
    /// use std::time::Duration;
    /// let mut engine = Engine::new(Config::default())?;
    /// let mut completions = Completions::with_capacity(256);
    /// let count = engine.poll(&mut completions, Some(Duration::from_millis(1)))?;
    /// assert_eq!(count, 0); // the timeout passed
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn poll(
        &mut self,
        completions: &mut Completions,
        timeout: Option<Duration>,
    ) -> Result<usize, Error> {
        if self.is_child() {
            return Err(Error::Forked);
        }
        self.reset_poll_fd();
        self.refresh_clock();
        let deadline = timeout.map(|timeout| self.core.deadline_after(timeout));
        // The drop of a payload may panic. The steps after a poll are done in that case too.
        let polled = catch_unwind(AssertUnwindSafe(|| match self.core.failed {
            None => with_backend!(&mut *self.backend, backend => {
                self.core.poll(&mut **backend, completions, deadline)
            }),
            Some(violation) => self.core.poll_failed(violation, completions),
        }));
        self.core.interrupted = polled.is_err();
        self.update_poll_fd();
        self.backend.set_deadline(|| self.core.next_deadline());
        polled.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The time of the engine's clock: CLOCK_MONOTONIC, or the virtual time of the simulated world.
    /// For [`Engine::timer_at`], and for programs that run on both.
    pub fn now(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now_ns())
    }

    /// True if a poll would not wait: an operation is staged, an event is ready, or a timer is due.
    /// Makes no system call except to read the clock. For a loop that drives several engines.
    ///
    /// # Backends
    /// False does not mean that the kernel has no completion, except on the simulated backend.
    ///
    /// ```
    /// use proactor::{Config, Engine, ListenOptions};
    /// let mut engine = Engine::new(Config::default())?;
    /// assert!(!engine.wants_poll());
    /// engine.listen((std::net::Ipv4Addr::LOCALHOST, 0), ListenOptions::default())?;
    /// assert!(engine.wants_poll()); // to start an accept
    /// # Ok::<(), proactor::Error>(())
    /// ```
    pub fn wants_poll(&self) -> bool {
        if self.is_child() {
            return false;
        }
        if self.core.failed.is_some() {
            return !self.core.delivery.is_empty() || self.core.interrupted;
        }
        let due = self.core.next_deadline().is_some_and(|deadline| deadline <= self.now_ns());
        due || self.backend.is_poll_due()
            || with_backend!(&*self.backend, backend => backend.has_next())
    }

    /// The number of free receive buffers.
    pub fn free_buffers(&self) -> usize {
        if self.is_child() {
            return 0;
        }
        with_backend!(&*self.backend, backend => backend.free_buffers())
    }

    /// The backend, its tier and its capabilities, and for each unused one the reason.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Counters since the engine was created.
    pub fn stats(&self) -> Stats {
        let backend = with_backend!(&*self.backend, backend => backend.stats());
        self.core.stats.plus(backend)
    }

    /// A handle that wakes this engine from other threads and from signal handlers.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.core.waker_shared))
    }

    /// The connection of an id, if the engine may be used.
    fn conn(&self, id: ConnId) -> Result<&Conn, Error> {
        self.check_usable()?;
        self.core.conn(id.0)
    }

    fn wants_nonblocking(&self) -> bool {
        self.info.backend == Backend::Epoll
    }

    fn now_ns(&self) -> u64 {
        with_backend!(&*self.backend, backend => backend.now())
    }

    fn refresh_clock(&mut self) {
        self.core.now = self.now_ns();
    }

    fn ns_since_epoch(&self, when: Instant) -> u64 {
        u64::try_from(when.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Core {
    fn new(
        config: Config,
        number: EngineNumberGuard,
        waker_shared: Arc<WakerShared>,
        zero_copy: bool,
    ) -> Core {
        let engine = number.number();
        let nanoseconds =
            |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Core {
            endpoints: Endpoints::new(engine, config.connections_max),
            admission: Admission::new(config.connections_max, config.listeners_max),
            staging: Staging::default(),
            parking: Parking::default(),
            delivery: Delivery::new(config.tuning.budget, config.tuning.turn_bytes),
            timers: Timers::new(engine, config.timers_max),
            send_memory: SendMemory::default(),
            recv_bufs: RecvBufPool::default(),
            sent_tags: Vec::new(),
            zero_copy_threshold: config
                .tuning
                .zero_copy
                .bytes_min()
                .filter(|_| zero_copy)
                .unwrap_or(usize::MAX),
            stats: Stats::default(),
            now: 0,
            spin: Spin::new(nanoseconds(config.spin)),
            waker_shared,
            failed: None,
            interrupted: false,
            number,
            config,
        }
    }

    /// The connection of an id that the caller gave.
    fn conn(&self, key: Key) -> Result<&Conn, Error> {
        self.endpoints.conn(key).ok_or(Error::Stale)
    }

    /// The connection of an id that the caller gave.
    fn conn_mut(&mut self, key: Key) -> Result<&mut Conn, Error> {
        self.endpoints.conn_mut(key).ok_or(Error::Stale)
    }

    #[inline]
    fn stage(&mut self, key: Key) {
        if let Some(conn) = self.endpoints.conn_mut(key) {
            self.staging.add(conn, key);
        }
    }

    fn stage_listener(&mut self, key: Key) {
        if let Some(listener) = self.endpoints.listener_mut(key) {
            self.staging.add_listener(listener, key);
        }
    }

    /// True if a poll must not wait.
    fn has_work(&self) -> bool {
        !self.staging.is_empty() || !self.delivery.is_empty() || self.interrupted
    }

    /// The time at which the next poll has something to do even if nothing completes.
    fn next_deadline(&self) -> Option<u64> {
        match self.has_work() {
            true => Some(self.now),
            false => self.timers.next_deadline_ns(),
        }
    }

    fn deadline_after(&self, delay: Duration) -> u64 {
        self.now.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX))
    }
}
