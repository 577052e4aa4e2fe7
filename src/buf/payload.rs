//! What can be sent. Owns: [`Payload`] and its conversions. Invariant: its bytes do not move when the payload does.

use super::Lease;
use bytes::{Bytes, BytesMut};
use std::fmt;

/// Bytes to send, in whatever form the caller has them. They are not copied: the payload is kept until the kernel is done
/// with it.
#[non_exhaustive]
pub enum Payload {
    /// Shared bytes.
    Bytes(Bytes),
    /// Owned bytes.
    Vec(Vec<u8>),
    /// Bytes of the program itself.
    Static(&'static [u8]),
    /// Received bytes on their way onward.
    Lease(Lease),
}

impl Payload {
    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Bytes(bytes) => bytes,
            Payload::Vec(bytes) => bytes,
            Payload::Static(bytes) => bytes,
            Payload::Lease(lease) => lease,
        }
    }

    /// The number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True for a payload of no bytes. Sending one is no error, and puts nothing on the wire.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

impl Default for Payload {
    fn default() -> Payload {
        Payload::Static(&[])
    }
}

macro_rules! from {
    ($($kind:ty: $value:ident => $payload:expr;)*) => {
        $(impl From<$kind> for Payload {
            fn from($value: $kind) -> Payload {
                $payload
            }
        })*
    };
}

from! {
    Bytes: bytes => Payload::Bytes(bytes);
    BytesMut: bytes => Payload::Bytes(bytes.freeze());
    Vec<u8>: bytes => Payload::Vec(bytes);
    Box<[u8]>: bytes => Payload::Vec(bytes.into());
    String: text => Payload::Vec(text.into());
    &'static [u8]: bytes => Payload::Static(bytes);
    &'static str: text => Payload::Static(text.as_bytes());
    Lease: lease => Payload::Lease(lease);
}

impl<const N: usize> From<&'static [u8; N]> for Payload {
    fn from(bytes: &'static [u8; N]) -> Payload {
        Payload::Static(bytes)
    }
}
