//! The engine: one per thread, polled by its owner. Owns: the facade, and the [`Core`], which falls
//! into parts that each keep their own invariant. The logic is in the files beside this one, one
//! subject each, and knows no backend.
//!
//! | file | subject |
//! |---|---|
//! | `connect` `accept` `recv` `recv_into` `send` `hangup` `shutdown` `close` | an operation each: its calls, when it is started, what its completion means |
//! | `adopt` `timers` `foreign` | other calls |
//! | `turn` `deliver` `staging` `parking` `spin` | a poll: its steps; what the caller is told and in which order; what waits to be started |
//! | `endpoints` `conn` `admission` | what is open |
//! | `failure` `teardown` | the end of an engine |
//! | `simulated` `audit` | engines in simulated worlds, and checks (feature `sim`) |

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
mod foreign;
mod hangup;
mod parking;
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

use crate::backend::{AnyBackend, Backend as _, Side, select, with_backend};
use crate::buf::{RecvBufPool, SendMemory};
use crate::caps::Capability;
use crate::completion::Completions;
use crate::config::Config;
use crate::error::Error;
use crate::id::{ConnId, EngineNumberGuard, Key};
use crate::info::Info;
use crate::leak::Leakable;
use crate::net::Addr;
use crate::stats::Stats;
use crate::tier::Backend;
use crate::waker::{Inbox, Waker};
use admission::Admission;
pub use adopt::AdoptedId;
use conn::Conn;
use deliver::Delivery;
use endpoints::Endpoints;
use foreign::Watch;
use parking::Parking;
use spin::Spin;
use staging::Staging;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use timers::Timers;

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// How many engines of this process were dropped while the kernel would not let go of their memory
/// in time (`Config::teardown_max`). That memory was leaked, so that nothing is ever used after it
/// is freed.
pub fn leaked_engines() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// A completion networking engine. One per thread; it does not leave the thread that made it.
///
/// Calls only note what is wanted; [`Engine::poll`] hands it to the kernel. They may be made at any
/// time, also from within the loop over the completions of a poll.
///
/// Dropping an engine closes everything it has open, without flushing: call [`Engine::close_all`]
/// first where that matters.
///
/// # Forks
/// An engine belongs to the process that made it. In a forked child each call that returns a
/// `Result` answers [`Error::Forked`] (or [`SendError::Forked`](crate::SendError::Forked),
/// [`WriteError::Forked`](crate::WriteError::Forked)). The other calls answer as for an engine that
/// has nothing open, except those that only read the engine's own memory or a clock
/// ([`Engine::info`], [`Engine::stats`], [`Engine::now`]). Its [`Waker`]s do nothing.
///
/// Dropping it in a child does nothing: no payload is dropped, no descriptor closed, no memory
/// unmapped. The engine's descriptors are close-on-exec (adopted ones as they came), and stay open
/// in the child until it calls execve(2) or exits. A child that needs an engine makes one of its
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
    watch: Option<Watch>,
    epoch: Instant,
}

/// No room to start an operation before the next wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Full;

/// What an engine is apart from its backend. Invariant: a connection that wants something started
/// is staged; one that ended is in no table.
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
    /// Tags of payloads that an operation sent, on their way to the caller. Empty between
    /// operations.
    sent_tags: Vec<u64>,
    /// Payloads of at least so many bytes may be sent without a copy; `usize::MAX` where that is
    /// not done.
    zero_copy_threshold: usize,
    stats: Stats,
    /// Nanoseconds since the backend's epoch, read once or twice a turn.
    now: u64,
    spin: Spin,
    inbox: Arc<Inbox>,
    /// What the kernel said that cannot be true.
    failed: Option<&'static str>,
    /// The last poll ended in a panic: some of its turn is left to do.
    interrupted: bool,
}

impl Engine {
    /// Makes an engine.
    ///
    /// # Errors
    /// [`Error::Config`] for values that make no sense; [`Error::Unsupported`] if a backend, tier
    /// or capability was asked for by name and is not to be had; [`Error::Os`] if the process is
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
        let inbox = Inbox::new()?;
        let number = EngineNumberGuard::new();
        let (backend, info) = select::open(&config, number.number(), &inbox)?;
        Ok(Engine::on(config, number, inbox, backend, info))
    }

    fn on(
        config: Config,
        number: EngineNumberGuard,
        inbox: Arc<Inbox>,
        backend: AnyBackend,
        info: Info,
    ) -> Engine {
        let epoch = with_backend!(&backend, backend => backend.epoch());
        let zero_copy = info.caps.uses(Capability::SendZc);
        let core = Leakable::new(Core::new(config, number, inbox, zero_copy));
        let backend = Leakable::new(backend);
        Engine { core, backend, info, watch: None, epoch }
    }

    /// Each public call goes through this, [`Engine::check`] or [`Engine::own`].
    #[inline]
    fn is_child(&self) -> bool {
        self.core.inbox.is_child()
    }

    #[inline]
    fn check(&self) -> Result<(), Error> {
        match self.core.failed {
            _ if self.is_child() => Err(Error::Forked),
            Some(what) => Err(Error::EngineFailed(what)),
            None => Ok(()),
        }
    }

    /// The engine's state, in the process that made it.
    #[inline]
    fn own(&mut self) -> Result<&mut Core, Error> {
        self.check()?;
        Ok(&mut self.core)
    }

    /// Hands what was staged to the kernel, waits until something happened or `timeout` has passed
    /// (`None`: for ever; zero: not at all), and adds what happened to `completions`, at most up to
    /// its capacity. Returns how many were added: a timeout that passes is `Ok(0)`. Signals do not
    /// end the wait.
    ///
    /// If `completions` is full already, nothing is waited for, and 0 returned.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child. `Error::Simulation` if the host of a simulated engine
    /// crashed, or nothing will ever happen in its world. [`Error::Os`] if the kernel refuses to go
    /// on; connections cannot cause that. [`Error::EngineFailed`] if the kernel said something that
    /// cannot be true, once all connections were reported closed.
    ///
    /// # Panics
    /// A panic of a payload's own `drop` goes on to the caller. The engine stays usable: nothing is
    /// lost, and what the poll has added to `completions` is there.
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
        self.enter_foreign();
        self.refresh_clock();
        let deadline = timeout.map(|timeout| self.core.later(timeout));
        // A payload's own drop may panic: what follows a poll is done all the same.
        let polled = catch_unwind(AssertUnwindSafe(|| match self.core.failed {
            None => with_backend!(&mut *self.backend, backend => {
                self.core.poll(&mut **backend, completions, deadline)
            }),
            Some(what) => self.core.poll_failed(what, completions),
        }));
        self.core.interrupted = polled.is_err();
        self.leave_foreign();
        self.backend.note_deadline(|| self.core.next_deadline());
        polled.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The time by the engine's clock: the monotonic clock of the system, or that of the simulated
    /// world. For [`Engine::timer_at`], and for programs that are to run in both.
    pub fn now(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.clock())
    }

    /// True if a poll has something to do that is known without asking the kernel: something is
    /// staged, finished and not yet handed out, or a timer is due. For those who drive several
    /// engines from one loop; false does not mean that a poll finds nothing, except on the
    /// simulated backend.
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
        let due = self.core.next_deadline().is_some_and(|deadline| deadline <= self.clock());
        due || self.backend.is_expected()
            || with_backend!(&*self.backend, backend => backend.has_next())
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
            early_sends: backend.early_sends,
            zero_copy_sends: backend.zero_copy_sends,
            kernel_violations: backend.kernel_violations,
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
    /// engine.set_tag(conn, 7)?;
    /// assert_eq!(engine.tag(conn)?, 7);
    /// engine.abort(conn)?;
    /// engine.poll(&mut completions, None)?;
    /// assert_eq!(completions.pop().map(|completion| completion.tag), Some(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// assert!(engine.is_live(conn) && engine.connections() == 1);
    /// engine.abort(conn)?;
    /// engine.poll(&mut completions, None)?; // reports Event::Closed
    /// assert!(!engine.is_live(conn) && engine.connections() == 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_live(&self, id: ConnId) -> bool {
        self.look(id).is_ok()
    }

    /// The number of connections: opened or accepted, and not yet told to be closed.
    pub fn connections(&self) -> usize {
        if self.is_child() { 0 } else { self.core.admission.live() }
    }

    /// The address of the peer. A system call.
    ///
    /// # Errors
    /// [`Error::Stale`], or what getpeername(2) answers.
    pub fn peer_addr(&self, id: ConnId) -> Result<Addr, Error> {
        self.look(id)?;
        with_backend!(&*self.backend, backend => backend.addr(id.0, Side::Peer))
            .map_err(|error| Error::os("getpeername", &error))
    }

    /// The address on this side. A system call.
    ///
    /// # Errors
    /// [`Error::Stale`], or what getsockname(2) answers.
    pub fn local_addr(&self, id: ConnId) -> Result<Addr, Error> {
        self.look(id)?;
        with_backend!(&*self.backend, backend => backend.addr(id.0, Side::Local))
            .map_err(|error| Error::os("getsockname", &error))
    }

    /// The descriptor of a connection, where there is one yet: for socket options. Reading from it,
    /// writing to it or closing it behind the engine's back breaks the order of bytes.
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
    /// let fd = engine.fd(conn).expect("an adopted socket has a descriptor");
    /// let buffer_bytes = socket2::SockRef::from(&fd).recv_buffer_size()?;
    /// assert!(buffer_bytes > 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fd(&self, id: ConnId) -> Option<BorrowedFd<'_>> {
        self.look(id).ok()?;
        with_backend!(&*self.backend, backend => backend.fd(id.0))
    }

    /// The connection behind an id, in the process that made the engine.
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

impl Core {
    fn new(config: Config, number: EngineNumberGuard, inbox: Arc<Inbox>, zero_copy: bool) -> Core {
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
            inbox,
            failed: None,
            interrupted: false,
            number,
            config,
        }
    }

    /// The connection behind an id that the caller holds, to look at.
    fn look(&self, key: Key) -> Result<&Conn, Error> {
        self.endpoints.conn(key).ok_or(Error::Stale)
    }

    /// The connection behind an id that the caller holds.
    fn conn(&mut self, key: Key) -> Result<&mut Conn, Error> {
        self.endpoints.conn_mut(key).ok_or(Error::Stale)
    }

    #[inline]
    fn mark_dirty(&mut self, key: Key) {
        if let Some(conn) = self.endpoints.conn_mut(key) {
            self.staging.mark(conn, key);
        }
    }

    fn mark_listener_dirty(&mut self, key: Key) {
        if let Some(listener) = self.endpoints.listener_mut(key) {
            self.staging.mark_listener(listener, key);
        }
    }

    /// True if a poll has something to do at once.
    fn has_work(&self) -> bool {
        !self.staging.is_empty() || !self.delivery.is_empty() || self.interrupted
    }

    /// When `poll` has something to do although nothing happened.
    fn next_deadline(&self) -> Option<u64> {
        match self.has_work() {
            true => Some(self.now),
            false => self.timers.next_deadline_ns(),
        }
    }

    fn later(&self, delay: Duration) -> u64 {
        self.now.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX))
    }
}
