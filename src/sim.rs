//! A simulated network: test code that uses the engine from a seed, in virtual time, with faults.
//!
//! A [`World`] has [`Host`]s; [`Host::engine`] makes an ordinary [`Engine`] that lives there. The
//! program that uses it is the one that runs in production: it connects, listens, sends, sets
//! timers and polls. What is different is that the network is in memory, that the clock is the
//! world's and moves only when everybody waits, and that everything that chance decides comes from
//! the seed of the world: the same seed gives the same run, event by event.
//!
//! ```
//! use proactor::sim::{Fault, Faults, World};
//! use proactor::{Completions, Config, ConnectOptions, Event, ListenOptions};
//! use std::time::Duration;
//!
//! let world = World::new(42);
//! world.set_faults(Faults::default().with(Fault::ShortRead, 0.5).with(Fault::Delay, 0.2));
//! let (server, client) = (world.host("server"), world.host("client"));
//! let addr = (server.ip(), 7000);
//!
//! // A program of its own, with a loop of its own. It may as well be the server's `main`.
//! let host = server.clone();
//! let echo = world.spawn("echo", move || {
//!     let mut engine = host.engine(Config::default())?;
//!     let mut completions = Completions::with_capacity(64);
//!     engine.listen(addr, ListenOptions::default())?;
//!     loop {
//!         engine.poll(&mut completions, None)?;
//!         for completion in completions.drain() {
//!             match completion.event {
//!                 Event::Received(data) => drop(engine.send(completion.conn, data)),
//!                 Event::ReadClosed => engine.close(completion.conn)?,
//!                 Event::Closed(reason) => return Ok::<_, proactor::Error>(reason.kind),
//!                 _ => {}
//!             }
//!         }
//!     }
//! });
//!
//! world.sleep(Duration::from_millis(1));
//! let mut engine = client.engine(Config::default())?;
//! let mut completions = Completions::with_capacity(64);
//! let conn = engine.connect(addr, ConnectOptions::default())?;
//! engine.send(conn, "ping")?;
//! let mut answer = Vec::new();
//! while answer.len() < 4 {
//!     engine.poll(&mut completions, Some(Duration::from_secs(1)))?;
//!     for completion in completions.drain() {
//!         if let Event::Received(data) = completion.event {
//!             answer.extend_from_slice(&data);
//!         }
//!     }
//! }
//! assert_eq!(answer, b"ping");
//! engine.close(conn)?;
//! while engine.is_live(conn) {
//!     engine.poll(&mut completions, Some(Duration::from_secs(1)))?;
//!     completions.drain();
//! }
//! assert_eq!(echo.join().unwrap()?, proactor::CloseKind::PeerClosed);
//! println!("{} (seed 42)", world.trace_hash());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The [`guide`] takes a protocol with a bug from "works on my machine" to a seed that breaks it,
//! and to its fix.
//!
//! # Time
//! A poll that has to wait lets the others run, and when nobody can, the clock moves to the next
//! event. An hour of timeouts takes milliseconds. A poll that does not wait takes a microsecond of
//! virtual time, so that a loop of such polls is no standstill. If everybody waits without a
//! deadline and no event is coming, a poll answers [`Error::Simulation`] with
//! [`Halt::AtRest`](crate::Halt): in real life it would hang.
//!
//! Time that a program takes from elsewhere is the real one: ask [`Engine::now`] instead, or
//! [`World::now`].
//!
//! # Several programs
//! [`World::spawn`] runs a program on a thread of its own, so that it can block in its polls; but
//! only one thread of a world ever runs at a time, handed on at the points where one waits, in an
//! order that the seed decides. Or make several engines on one thread, poll them with a timeout of
//! zero, and move time on with [`World::step`]. A [`Waker`](crate::Waker) works between the
//! programs of a world; a thread outside of it comes at no moment that a seed could repeat.
//!
//! # Seeds
//! A run is the same on every machine, in debug and release builds: compare [`World::trace_hash`].
//! What must not creep in is the program's own affair: iteration over a `HashMap` with a random
//! seed, addresses, the time of day. Let tests print the seed when they fail.
//!
//! # What is simulated
//! Streams with latency, jitter, bandwidth and a bounded buffer each way, in order and complete, as
//! TCP has them above the packets; connects that are refused, unreachable, unanswered (SYNs are
//! sent again after 1, 2, 4... seconds, and given up after two minutes) or queued behind a full
//! backlog; FIN, RST, RST for data to a closed socket; IPv4, IPv6 and unix addresses, each host
//! with a loopback of its own; descriptors and receive buffers that run out; and the faults in
//! [`Fault`]. Not simulated: options of sockets, congestion, the cost of system calls. Descriptors
//! do not exist: [`Engine::fd`] is `None`; `adopt`, `release` and `as_fd` answer
//! [`Error::Unsupported`].

use crate::backend::sim::{Script, Shared, Sim, Until, nanoseconds};
use crate::error::Halt;
use crate::{Addr, Config, Engine, Error, ListenOptions};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use crate::backend::sim::{Fault, Faults, Link, Peer, PeerListener};

#[doc = include_str!("../docs/testing-your-protocol.md")]
pub mod guide {}

/// A simulated world. It belongs to the thread that made it; programs get [`Host`]s. Dropping it
/// ends all programs that still run: their polls answer [`Error::Simulation`].
#[derive(Debug)]
pub struct World {
    inner: Host,
    not_send: PhantomData<*const ()>,
}

/// A host of a [`World`]: what programs on it need. Clones name the same host.
#[derive(Clone)]
pub struct Host {
    world: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    epoch: Instant,
    index: u32,
}

/// Something that happens at an exact moment: see [`World::at`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Cuts two hosts from each other. Nothing is lost that TCP would send again.
    Partition(Host, Host),
    /// Ends that.
    Heal(Host, Host),
    /// The host loses its power: its connections and listeners are gone, nobody is told, and its
    /// engines answer [`Error::Simulation`]. Unix socket files stay behind.
    Crash(Host),
    /// It is up again: new engines can be made there. Peers of lost connections learn of it when
    /// they send.
    Restart(Host),
    /// Another fault plan.
    Faults(Faults),
    /// Another link between two hosts, in both directions.
    Link(Host, Host, Link),
    /// The next `times` occasions of `fault` at `host` are taken, whatever its probability.
    Force {
        /// Where.
        host: Host,
        /// Which.
        fault: Fault,
        /// How often.
        times: u32,
    },
    /// When so many more bytes were sent from one host to the other, over all connections, the
    /// connection that sends the next one is reset, just there.
    ResetAfter {
        /// The sender.
        from: Host,
        /// The receiver.
        to: Host,
        /// So many bytes still pass.
        bytes: u64,
    },
    /// The most descriptors that the engines of a host may hold from now on. Default: no limit.
    Descriptors {
        /// Where.
        host: Host,
        /// How many.
        max: usize,
    },
}

/// What is open in a world, for tests that look for leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Ends of connections, those of engines and of [`Peer`]s, and those that wait to be accepted.
    pub sockets: usize,
    /// Listeners.
    pub listeners: usize,
    /// Descriptors that engines hold.
    pub descriptors: usize,
}

/// A program that [`World::spawn`] started.
#[derive(Debug)]
pub struct Program<T> {
    world: Arc<Shared>,
    actor: usize,
    result: Arc<Mutex<Option<thread::Result<T>>>>,
}

impl World {
    /// A world without hosts. Everything that chance decides in it comes from `seed`.
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
    /// `fd00::2`, and so on; each has loopback addresses of its own.
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

    /// Starts a program. It gets its turn when the others wait.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        program: impl FnOnce() -> T + Send + 'static,
    ) -> Program<T> {
        self.inner.spawn(name, program)
    }

    /// The fault plan from now on. Default: no faults.
    pub fn set_faults(&self, faults: Faults) {
        self.shared().lock().net.apply(Script::Faults(faults));
    }

    /// The fault plan in force.
    pub fn faults(&self) -> Faults {
        self.shared().lock().net.faults.clone()
    }

    /// Switches one fault off, and leaves the others as they are.
    pub fn switch_off(&self, fault: Fault) {
        let net = &mut self.shared().lock().net;
        net.faults = net.faults.clone().without(fault);
    }

    /// The link between any two hosts, those to come included.
    pub fn set_default_link(&self, link: Link) {
        self.shared().lock().net.set_default_link(link);
    }

    /// The link between two hosts, or with the same one twice, its loopback.
    pub fn set_link(&self, a: &Host, b: &Host, link: Link) {
        self.act(Action::Link(a.clone(), b.clone(), link));
    }

    /// Packets to this address vanish: connects to it hang until they time out. (Other addresses
    /// that no host has are unreachable.)
    pub fn black_hole(&self, ip: IpAddr) {
        self.shared().lock().net.black_holes.insert(ip);
    }

    /// Does something now.
    ///
    /// # Panics
    /// If it names a host of another world.
    pub fn act(&self, action: Action) {
        self.shared().lock().net.apply(action.script(&self.inner.world));
    }

    /// Does something at an exact moment, `when` after the start of the world; at once if that has
    /// passed.
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

    /// Lets the next event happen, or moves the clock to when an engine next wants to be polled
    /// (for a timer, or for what is staged). False if nothing is coming. For those who poll their
    /// engines with a timeout of zero; programs do not run meanwhile. Stepping on while
    /// [`World::has_ready`] makes for slow programs.
    pub fn step(&self) -> bool {
        self.shared().step()
    }

    /// True if an engine wants to be polled now: something is finished, a timer is due, or
    /// something waits to be started.
    pub fn has_ready(&self) -> bool {
        let net = &self.shared().lock().net;
        let due = |deadline: Option<u64>| deadline.is_some_and(|deadline| deadline <= net.now);
        net.engines.iter().any(|engine| engine.ready_len() > 0 || due(engine.deadline))
    }

    /// Waits, and lets the programs run.
    ///
    /// # Panics
    /// If called by a thread that is no program of this world.
    pub fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration);
    }

    /// Lets the programs run until `done` says so; it is asked whenever something happened.
    ///
    /// # Errors
    /// [`Error::Simulation`] if nothing will ever happen any more and `done` still says no.
    pub fn run_until(&self, mut done: impl FnMut() -> bool) -> Result<(), Error> {
        loop {
            let seen = self.shared().lock().progress;
            if done() {
                return Ok(());
            }
            self.shared().wait(Until::Progress(seen), None).map_err(Error::Simulation)?;
        }
    }

    /// A number that stands for everything that happened so far: equal for equal runs, on every
    /// machine.
    pub fn trace_hash(&self) -> u64 {
        self.shared().lock().net.trace.hash()
    }

    /// Keeps the last so many entries of the trace to be read. Default: none; the hash is kept in
    /// any case.
    pub fn keep_trace(&self, entries: usize) {
        self.shared().lock().net.trace.keep(entries);
    }

    /// What happened, readable: one line each, with the time in seconds. Hosts, engines and
    /// programs are numbered as they were made, from 0; program 0 is the world's own thread.
    pub fn trace(&self) -> String {
        self.shared().lock().net.trace.to_string()
    }

    /// Adds a line of the caller's own to the trace, if that is kept. It does not count in the
    /// hash.
    pub fn note(&self, text: &str) {
        self.inner.note(text);
    }

    /// What is open.
    pub fn census(&self) -> Census {
        let (sockets, listeners, descriptors) = self.shared().lock().net.census();
        Census { sockets, listeners, descriptors }
    }

    /// Completions handed to engines so far.
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

impl Host {
    /// An engine on this host: the real one, on a simulated network. Of the configuration
    /// everything counts but the choice of a backend and tier; the environment is not looked at.
    ///
    /// # Errors
    /// [`Error::Config`]; [`Error::Simulation`] while the host is down.
    pub fn engine(&self, config: Config) -> Result<Engine, Error> {
        let (world, host, epoch) = (Arc::clone(&self.world), self.index, self.epoch);
        Engine::simulated(config, |parameters, inbox| {
            Sim::new(world, host, parameters, inbox, epoch)
        })
    }

    /// The name it was given.
    pub fn name(&self) -> String {
        self.world.lock().net.hosts[self.index as usize].name.clone()
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.world.lock().net.hosts[self.index as usize].ips[0]
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> IpAddr {
        self.world.lock().net.hosts[self.index as usize].ips[1]
    }

    /// Descriptors that its engines hold.
    pub fn descriptors(&self) -> usize {
        self.world.lock().net.hosts[self.index as usize].descriptors
    }

    /// Starts a program: as [`World::spawn`].
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        program: impl FnOnce() -> T + Send + 'static,
    ) -> Program<T> {
        let (world, result) = (Arc::clone(&self.world), Arc::new(Mutex::new(None)));
        let actor = world.add_actor();
        let handle = Program { world: Arc::clone(&world), actor, result: Arc::clone(&result) };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if world.begin_actor(actor) {
                let ended = catch_unwind(AssertUnwindSafe(program));
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            }
            world.end_actor(actor);
        });
        let thread = thread.expect("a thread for the program");
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        handle
    }

    /// Connects a [`Peer`], and waits until it is connected.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(&self, addr: impl Into<Addr>) -> io::Result<Peer> {
        self.start_connect(addr)?.finish_connect()
    }

    /// Begins to connect a [`Peer`], and does not wait.
    ///
    /// # Errors
    /// As connect(2), for what is known at once.
    pub fn start_connect(&self, addr: impl Into<Addr>) -> io::Result<Peer> {
        Peer::start_connect(&self.world, self.index, &addr.into())
    }

    /// A listener for [`Peer`]s.
    ///
    /// # Errors
    /// As bind(2).
    pub fn listen(&self, addr: impl Into<Addr>) -> io::Result<PeerListener> {
        self.listen_with(addr, &ListenOptions::default())
    }

    /// As [`Host::listen`], with options.
    ///
    /// # Errors
    /// As bind(2).
    pub fn listen_with(
        &self,
        addr: impl Into<Addr>,
        options: &ListenOptions,
    ) -> io::Result<PeerListener> {
        PeerListener::bind(&self.world, self.index, &addr.into(), options)
    }

    /// Time since the start of the world.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.world.now())
    }

    /// The time as an [`Instant`], by the clock of the engines of this world ([`Engine::now`]).
    pub fn instant(&self) -> Instant {
        self.epoch + self.now()
    }

    /// Waits, and lets the other programs run.
    ///
    /// # Panics
    /// If called by a thread that is no program of this world.
    pub fn sleep(&self, duration: Duration) {
        let until = self.now().saturating_add(duration);
        // If the world ends meanwhile, the next poll says so.
        let _ =
            self.world.wait(Until::Time, Some(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX)));
    }

    /// Adds a line to the trace: as [`World::note`].
    pub fn note(&self, text: &str) {
        let net = &mut self.world.lock().net;
        net.trace.note(net.now, text);
    }
}

impl PartialEq for Host {
    fn eq(&self, other: &Host) -> bool {
        Arc::ptr_eq(&self.world, &other.world) && self.index == other.index
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.index)
    }
}

impl Action {
    fn script(self, world: &Arc<Shared>) -> Script {
        let own = |host: &Host| {
            assert!(Arc::ptr_eq(&host.world, world), "a host of another world");
            host.index
        };
        match self {
            Action::Partition(a, b) => Script::Cut(own(&a), own(&b)),
            Action::Heal(a, b) => Script::Heal(own(&a), own(&b)),
            Action::Crash(host) => Script::Crash(own(&host)),
            Action::Restart(host) => Script::Restart(own(&host)),
            Action::Faults(faults) => Script::Faults(faults),
            Action::Link(a, b, link) => Script::Link(own(&a), own(&b), link),
            Action::Force { host, fault, times } => Script::Force(own(&host), fault, times),
            Action::ResetAfter { from, to, bytes } => {
                Script::ResetAfter(own(&from), own(&to), bytes)
            }
            Action::Descriptors { host, max } => Script::Descriptors(own(&host), max),
        }
    }
}

impl<T> Program<T> {
    /// Waits until it has ended, and returns what it returned, or its panic.
    ///
    /// # Errors
    /// The payload of its panic; a text if the world ended first.
    pub fn join(self) -> thread::Result<T> {
        let waited = if self.is_finished() {
            Ok(true)
        } else {
            self.world.wait(Until::Ended(self.actor), None)
        };
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.unwrap_or_else(|| Err(Box::new(waited.err().unwrap_or(Halt::Ended).to_string())))
    }

    /// True if it has ended.
    pub fn is_finished(&self) -> bool {
        self.world.has_ended(self.actor)
    }
}
