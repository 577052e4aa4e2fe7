//! What travels through the kernel with each operation: kind (8 bits), generation (24), slot (32).

use crate::id::Key;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a submission is for. Several kinds can serve one operation of the contract, one after the other.
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
    /// The first receive of a connection, single-shot although there are multishot ones. It may
    /// have buffers of its own.
    RecvFirst,
    /// Without buffer selection: data arrives, only then a buffer is bound.
    RecvPoll,
    Fill,
    FillPoll,
    Send,
    SendPoll,
    Close,
    Accept,
    AcceptPoll,
    CloseListener,
    Wake,
    /// Bounds a wait where the kernel cannot.
    Timeout,
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) generation24: u32,
    pub(super) slot: u32,
}

impl Token {
    /// True if it names that connection or listener.
    pub(super) fn is_of(self, key: Key) -> bool {
        self.generation24 == key.generation24() && self.slot == key.slot
    }
}

pub(super) fn pack(kind: Kind, key: Key) -> u64 {
    (kind as u64) << 56 | u64::from(key.generation24()) << 32 | u64::from(key.slot)
}

pub(super) fn unpack(user_data: u64) -> Option<Token> {
    let kind = Kind::from_number((user_data >> 56) as u8).filter(|kind| *kind != Kind::Idle)?;
    Some(Token { kind, generation24: (user_data >> 32) as u32 & 0x00ff_ffff, slot: user_data as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn there_and_back() {
        let key = Key { slot: 0xfeed_beef, generation: NonZeroU32::new(0xab12_3456).unwrap() };
        let token = unpack(pack(Kind::Accept, key)).unwrap();
        assert_eq!(token, Token { kind: Kind::Accept, generation24: 0x12_3456, slot: 0xfeed_beef });
        assert_eq!((unpack(u64::MAX), unpack(0)), (None, None));
    }
}
