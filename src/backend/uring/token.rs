//! The `user_data` of a submission. Owns: its layout, that of a [`Key`] with the kind of the
//! submission (8 bits) and zeros in place of the engine's number. Must not know what is in a slot.

use crate::id::{EngineNumber, Key};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a submission is for. Several kinds can serve one operation of the contract, one
        /// after the other.
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
    /// No submission: marks an idle direction of a slot.
    Idle,
    /// Makes the socket of a connect, which follows.
    Socket,
    Connect,
    /// Tier `polled`: the socket becomes writable.
    ConnectPoll,
    Recv,
    /// A single-shot receive where others are multishot: it has a buffer group of its own.
    RecvFirst,
    /// Without buffer selection: data arrives, only then a buffer is bound.
    RecvPoll,
    RecvInto,
    RecvIntoPoll,
    Send,
    /// Its slot and generation name a share of the payload, not a connection.
    SendZeroCopy,
    SendPoll,
    /// The peer sends its FIN, or resets the connection.
    Hangup,
    Close,
    Accept,
    AcceptPoll,
    Wake,
    /// Bounds a wait where the kernel cannot.
    Timeout,
    Cancel,
}

/// What a completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// The key, with the engine's number.
    pub(super) key: Key,
}

#[inline]
pub(super) fn pack(kind: Kind, key: Key) -> u64 {
    key.bits() & !Key::ENGINE_MASK | (kind as u64) << Key::ENGINE_SHIFT
}

/// The token of a submission of the backend of this engine; `None` if it is nobody's.
#[inline]
pub(super) fn unpack(user_data: u64, engine: EngineNumber) -> Option<Token> {
    let kind = (user_data & Key::ENGINE_MASK) >> Key::ENGINE_SHIFT;
    let kind = Kind::from_number(u8::try_from(kind).ok()?)?;
    let key = Key::from_bits(user_data & !Key::ENGINE_MASK)?.of_engine(engine);
    Some(Token { kind, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let key = Key::new(0x00ed_beef, 0x0b12_3456, EngineNumber::TEST);
        let token = unpack(pack(Kind::Accept, key), EngineNumber::TEST).unwrap();
        assert_eq!(token, Token { kind: Kind::Accept, key });
        assert_eq!(unpack(u64::MAX, EngineNumber::TEST), None);
        assert_eq!(unpack(0, EngineNumber::TEST), None);
    }
}
