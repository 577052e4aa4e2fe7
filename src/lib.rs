//! A completion networking engine for Linux. The caller submits connect, accept, recv, send and
//! close, and reaps their completions.
//!
//! Each [`Engine`] belongs to one thread. Calls such as [`Engine::connect`] and [`Engine::send`]
//! stage operations. [`Engine::poll`] submits all staged operations at once, waits, and appends
//! their completions to a [`Completions`] buffer. There are no callbacks and no async runtime: the
//! program runs its own loop.
//!
//! Two backends have the same semantics. `uring` submits each operation to io_uring, on Linux 5.6
//! and later. `epoll` performs the same operations on readiness, on older kernels, and in
//! containers whose seccomp profile or sysctl forbids io_uring. [`Engine::info`] reports the
//! backend, its capabilities, and for each unused one the reason.
//!
//! A third backend is for tests, behind the feature `sim`: `proactor::sim` runs engines and the
//! programs on them on a simulated network, in virtual time, with faults drawn from a seed.
//!
//! ```no_run
#![doc = include_str!("../examples/ping.rs")]
//! ```
//!
//! # Guarantees
//!
//! - **Terminal event.** Each [`ConnId`] from [`Engine::connect`], [`Engine::adopt`] or
//!   [`Event::Accepted`] gets exactly one [`Event::Closed`], and no event after it. The exception
//!   is a connection that the caller takes out with [`Engine::release`].
//! - **Order.** The bytes of a connection are received in order, and sent in the order of the
//!   calls. Each connection has at most one send operation in flight; all payloads that are queued
//!   meanwhile are sent by the next one.
//! - **Stale ids.** An id has a generation. After `Closed` it is stale: calls with it return an
//!   error, and never affect another connection.
//! - **Limits.** Every queue has a limit in [`Config`]. A call at the limit returns the payload
//!   ([`SendError::Full`]); the engine drops nothing.
//! - **No blocking.** Only [`Engine::poll`] blocks, for at most its timeout.
//!
//! # Differences between the backends
//!
//! A cancel takes effect at once on epoll. On io_uring it is a race: the operation may still
//! succeed. The engine handles both cases, and the simulated backend produces both. Unspecified on
//! all backends are the sizes of partial receives, pacing, the order of events of different
//! connections, the sizes of batches, and the time at which the exhaustion of descriptors is
//! noticed.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(missing_docs, unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("proactor needs Linux: it is built on io_uring and epoll");

mod backend;
mod buf;
mod caps;
mod completion;
mod config;
mod engine;
mod error;
mod id;
mod info;
#[allow(unsafe_code)]
mod leak;
mod net;
mod options;
#[cfg(feature = "sim")]
pub mod sim;
mod stats;
#[allow(unsafe_code)]
mod sys;
mod table;
mod tier;
mod timer;
mod tuning;
mod waker;

pub use buf::{Lease, Payload};
pub use caps::{Capability, CapabilityReport, CapabilityState, REQUIREMENTS, Requirement};
pub use completion::{CloseKind, CloseReason, Completion, Completions, Event};
pub use config::Config;
pub use engine::{AdoptedId, Engine, leaked_engines};
#[cfg(feature = "sim")]
pub use error::Halt;
pub use error::{Errno, Error, SendError, WriteError};
pub use id::{ConnId, ListenerId, TimerId};
pub use info::{Fallback, Info, Limits};
pub use net::Addr;
pub use options::{ConnectOptions, ListenOptions, ReadMode, SocketOptions};
pub use stats::Stats;
pub use tier::{Backend, Tier};
pub use tuning::{Tuning, ZeroCopy};
pub use waker::Waker;
