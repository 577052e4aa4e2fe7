//! Memory that travels. Owns: the receive pool and its leases, payloads and send queues, buffers of
//! callers that are being filled, and what of it the kernel has a claim on.
#![allow(unsafe_code)]

mod in_flight;
mod lease;
mod payload;
mod pool;
mod queue;
mod recv_buf;
mod send_memory;

pub(crate) use in_flight::InFlight;
pub use lease::Lease;
pub use payload::Payload;
pub(crate) use pool::Pool;
#[cfg(test)]
pub(crate) use pool::assert_disjoint;
pub(crate) use queue::SendQueue;
pub(crate) use recv_buf::{RecvBuf, RecvBufPool};
pub(crate) use send_memory::SendMemory;
