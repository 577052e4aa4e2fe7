//! Memory that travels. Owns: the receive pool and its leases, payloads and send queues, buffers of callers that are
//! being filled. Invariant: memory that an operation was given stays put until that operation's final completion.
#![allow(unsafe_code)]

mod disposal;
mod fill;
mod lease;
mod payload;
mod pool;
mod queue;

pub(crate) use disposal::Disposal;
pub(crate) use fill::{Fill, Written};
pub use lease::Lease;
pub use payload::Payload;
pub(crate) use pool::Pool;
#[cfg(test)]
pub(crate) use pool::assert_disjoint;
pub(crate) use queue::{QueuePool, SendQueue};
