//! The `user_data` of an SQE and its CQEs. Owns: its layout, which is that of a [`Key`] with the
//! kind of the SQE (8 bits) in place of the engine's number. Invariant: [`unpack`] returns what was
//! packed, or `None`. Must not know what is in a slot.

use crate::id::{EngineNumber, Key};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The purpose of an SQE. One operation of the contract may take several SQEs of different
        /// kinds, one after the other.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            fn from_number(number: u8) -> Option<Kind> {
                $(if number == Kind::$name as u8 { return Some(Kind::$name) })*
                None
            }
        }
    };
}

kinds! {
    /// No SQE: a direction of a slot with nothing in flight.
    Idle,
    /// SOCKET, before the CONNECT of the same operation.
    Socket,
    Connect,
    /// POLL_ADD for POLLOUT, after a connect(2) that returned EINPROGRESS.
    ConnectPoll,
    Recv,
    /// The first receive of a connection: single-shot, where later ones are multishot. Its buffer
    /// group may be another one.
    RecvFirst,
    /// POLL_ADD before a receive without buffer selection, so that an idle connection holds no
    /// buffer.
    RecvPoll,
    RecvInto,
    RecvIntoPoll,
    Send,
    /// Its key is that of a share of a payload, not of a connection.
    SendZeroCopy,
    SendPoll,
    /// POLL_ADD for the peer's FIN or reset.
    Hangup,
    Close,
    Accept,
    AcceptPoll,
    /// POLL_ADD on the event fd of the waker.
    Wake,
    /// The timeout of a wait, where `io_uring_enter` takes none.
    Timeout,
    Cancel,
}

/// A `user_data`, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Has the engine's number again.
    pub(super) key: Key,
}

#[inline]
pub(super) fn pack(kind: Kind, key: Key) -> u64 {
    key.bits() & !Key::ENGINE_MASK | (kind as u64) << Key::ENGINE_SHIFT
}

/// The token in a `user_data`. `None` if the kind or the key is invalid.
#[inline]
pub(super) fn unpack(user_data: u64, engine: EngineNumber) -> Option<Token> {
    let kind = (user_data & Key::ENGINE_MASK) >> Key::ENGINE_SHIFT;
    let kind = Kind::from_number(u8::try_from(kind).ok()?)?;
    let key = Key::from_bits(user_data & !Key::ENGINE_MASK)?.with_engine(engine);
    Some(Token { kind, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_a_round_trip() {
        let key = Key::new(0x00ed_beef, 0x0b12_3456, EngineNumber::TEST);
        let token = unpack(pack(Kind::Accept, key), EngineNumber::TEST).unwrap();
        assert_eq!(token, Token { kind: Kind::Accept, key });
        assert_eq!(unpack(u64::MAX, EngineNumber::TEST), None);
        assert_eq!(unpack(0, EngineNumber::TEST), None);
    }
}
