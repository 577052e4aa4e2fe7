//! Sockets and addresses. Owns: how a socket is made and configured, in safe code over socket2.
//! Must not know the backends.

mod addr;
pub(crate) mod socket;

pub use addr::Addr;
