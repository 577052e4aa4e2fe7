//! Bytes to send. Owns: [`Payload`] and its conversions. Invariant: the bytes do not move when the
//! payload is moved. Must not know how they are sent.

use super::Lease;
use bytes::{Bytes, BytesMut};
use std::fmt;

/// Bytes to send. [`Engine::send`](crate::Engine::send) takes any type that converts into a
/// payload.
///
/// The bytes are not copied in user space. The engine keeps the payload until the kernel no longer
/// needs it, and then drops it.
///
/// ```
/// use proactor::Payload;
/// let payload = Payload::from(vec![1, 2, 3]);
/// assert_eq!((payload.len(), payload.as_slice()), (3, &[1, 2, 3][..]));
/// assert!(matches!(Payload::from("static"), Payload::Static(b"static")));
/// ```
#[non_exhaustive]
pub enum Payload {
    /// Shared bytes.
    Bytes(Bytes),
    /// Owned bytes.
    Vec(Vec<u8>),
    /// Static bytes.
    Static(&'static [u8]),
    /// Received bytes.
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

    /// A second owner of the same bytes, which stay in place until both are dropped. This payload
    /// may change its variant, but its bytes do not move.
    pub(crate) fn share(&mut self) -> Payload {
        *self = match std::mem::take(self) {
            Payload::Vec(bytes) => Payload::Bytes(bytes.into()),
            Payload::Lease(lease) => match lease.into_heap() {
                Ok(bytes) => Payload::Bytes(bytes.into()),
                Err(lease) => Payload::Lease(lease),
            },
            payload => payload,
        };
        match self {
            Payload::Bytes(bytes) => Payload::Bytes(bytes.clone()),
            Payload::Static(bytes) => Payload::Static(bytes),
            Payload::Lease(lease) => {
                Payload::Lease(lease.share().expect("heap copies were converted above"))
            }
            Payload::Vec(_) => unreachable!("vectors were converted above"),
        }
    }

    /// True if it has no bytes. An empty payload can be sent; it does not reach the network.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;

    /// For each variant, a payload and its share have the same bytes at the same address, and the
    /// bytes outlive the payload.
    #[test]
    fn a_share_keeps_the_bytes_in_place() {
        let pool = Pool::new(4, 64, 1).unwrap();
        let id = pool.checkout().unwrap();
        pool.write(id, 0, b"lent");
        let lent = pool.deliver(id, 4, false).unwrap();
        let mut spare = Vec::with_capacity(100);
        spare.extend_from_slice(b"vector with room");
        let payloads: [Payload; 6] = [
            Bytes::from(vec![7; 100]).into(),
            vec![1, 2, 3].into(),
            spare.into(),
            "static".into(),
            lent.into(),
            Lease::copied(b"copied").into(),
        ];
        for mut payload in payloads {
            let (before, copy) = (payload.as_slice().as_ptr(), payload.as_slice().to_vec());
            let share = payload.share();
            assert_eq!((payload.as_slice().as_ptr(), share.as_slice().as_ptr()), (before, before));
            drop(payload);
            assert_eq!(share.as_slice(), copy);
        }
        assert_eq!(pool.free(), 4, "all claims ended");
    }
}
