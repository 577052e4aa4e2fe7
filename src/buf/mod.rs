//! Memory of receives and sends. Owns: the receive pool and its leases, payloads and send queues,
//! buffers of callers that are being filled, and the types that keep memory alive while the kernel
//! uses it. Invariant: memory that the kernel may access is not freed or reused. Must not know the
//! engine or the backends.
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
