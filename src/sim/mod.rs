//! A simulated network for tests: from a seed, in virtual time, with faults.
//!
//! A [`World`] has [`Host`]s. [`Host::engine`] creates an ordinary [`Engine`](crate::Engine) on a
//! host, so that the program that uses it is the one that runs in production: it connects, listens,
//! sends, sets timers and polls. The network is in memory. The clock belongs to the world, and
//! moves only when all programs wait. All random numbers come from the seed of the world: the same
//! seed gives the same run, event by event.
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
//! // A program with a loop of its own, for instance the `main` of a server.
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
//! The [`guide`] takes a protocol with a bug from a test that passes on loopback, to a seed that
//! fails, to the fix.
//!
//! # Time
//! A poll that has to wait lets other programs run. When none can run, the clock moves to the next
//! event, so that an hour of timeouts takes milliseconds. A poll that does not wait takes a
//! microsecond of virtual time, so that a loop of such polls moves the clock too. If all programs
//! wait without a deadline and no event is scheduled, a poll fails with
//! [`Error::Simulation`](crate::Error::Simulation) and [`Halt::AtRest`](crate::Halt). On a real
//! network it would not return.
//!
//! Programs must take the time from [`Engine::now`](crate::Engine::now) or [`World::now`].
//! `Instant::now` is the real time.
//!
//! # Several programs
//! [`World::spawn`] runs a program on a thread of its own, so that it can block in its polls. Only
//! one thread of a world runs at a time. When it waits, the seed decides which one runs next. The
//! alternative is to create several engines on one thread, poll them with a timeout of zero, and
//! move the clock with [`World::step`]. A [`Waker`](crate::Waker) works between the programs of a
//! world. A wake-up from a thread outside of the world comes at a time that the seed does not
//! decide.
//!
//! # Seeds
//! A run is the same on every machine, in debug and release builds: compare [`World::trace_hash`].
//! The program itself must be deterministic too: it must not depend on the order of a `HashMap`
//! with a random hash seed, on addresses, or on the time of day. Tests should print the seed when
//! they fail.
//!
//! # What is simulated
//! - Streams, in order and complete, as TCP provides them above the packets; with latency, jitter,
//!   bandwidth and a bounded buffer in each direction.
//! - Connects that are refused, unreachable, unanswered or queued behind a full backlog. An
//!   unanswered SYN is retransmitted after 1, 2, 4... seconds, and the connect fails after two
//!   minutes.
//! - FIN, RST, and RST as the answer to data for a closed socket.
//! - IPv4, IPv6 and unix addresses. Each host has its own loopback.
//! - Limits of descriptors and of receive buffers.
//! - The faults in [`Fault`].
//!
//! Not simulated: socket options, congestion, the cost of system calls, and descriptors:
//! [`Engine::fd`](crate::Engine::fd) is `None`; `adopt`, `release` and `as_fd` fail with
//! [`Error::Unsupported`](crate::Error::Unsupported).

mod action;
mod host;
mod program;
mod world;

pub use crate::backend::sim::{Fault, Faults, Link, Peer, PeerListener};
pub use action::Action;
pub use host::Host;
pub use program::Program;
pub use world::{Census, World};

#[doc = include_str!("../../docs/testing-your-protocol.md")]
pub mod guide {}
