//! Sockets and addresses. Owns: how a socket is made and set up, in safe code over socket2. Knows
//! no backend.

mod addr;
pub(crate) mod socket;

pub use addr::Addr;
