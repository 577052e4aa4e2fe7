//! A completion networking engine for Linux: you submit connect, accept, recv, send and close, and
//! get back what happened.
//!
//! One [`Engine`] belongs to one thread. Calls such as [`Engine::connect`] and [`Engine::send`]
//! only note what is wanted; [`Engine::poll`] hands all of it to the kernel in one go, waits, and
//! fills a [`Completions`] buffer with what came of it. There are no callbacks and no async
//! runtime: the loop is yours.
//!
//! Two backends speak the same language. `uring` turns each wish into an io_uring submission and
//! runs on kernels 5.6 and later that allow it; `epoll` runs the same operations on readiness, for
//! older kernels and for containers whose seccomp profile or sysctl forbids io_uring. Which one is
//! in use, which capabilities, and why not the others is never a guess: see [`Engine::info`].
//!
//! For tests there is a third backend, behind the feature `sim`: `proactor::sim` runs engines, and
//! the programs on them, on a network in memory, in virtual time, with faults drawn from a seed.
//!
//! ```no_run
#![doc = include_str!("../examples/ping.rs")]
//! ```
//!
//! # The contracts
//!
//! - **Terminal contract.** Each [`ConnId`] ever handed out, by [`Engine::connect`],
//!   [`Engine::adopt`] or [`Event::Accepted`], gets exactly one [`Event::Closed`], and nothing
//!   after it. (The exception is a connection that the caller takes back with
//!   [`Engine::release`].)
//! - **Order.** The bytes of one connection arrive in order, and leave in the order of the calls.
//!   One send operation is in flight per connection; all that was queued in the meantime leaves
//!   gathered in the next one.
//! - **Stale ids.** An id carries a generation. After `Closed` it names nothing: calls with it
//!   return an error, never touch another connection.
//! - **Bounds.** Every queue has a limit in [`Config`]. At the limit a call hands the data back
//!   ([`SendError::Full`]); nothing is dropped.
//! - **Nothing blocks** but [`Engine::poll`], and that only as long as its timeout.
//!
//! # Where the backends differ
//!
//! A cancelled operation is exact on epoll and a race on io_uring (it may still succeed; the engine
//! handles both, and the simulated backend plays both). Sizes of partial receives, pacing, the
//! order between different connections, batch sizes, and the moment at which descriptor exhaustion
//! is noticed are unspecified everywhere.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(missing_docs, unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("proactor is for Linux: it stands on io_uring and epoll");

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
