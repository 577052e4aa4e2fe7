//! One client. Owns: its kind, its progress, and the ends that are correct for it. Must not know
//! the engine.

use proactor::CloseKind;

/// A kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Sends messages and checks their echo.
    Talker,
    /// Sends one byte at a time.
    Trickler,
    /// Sends everything, then its FIN, then reads the echo to the end.
    HalfCloser,
    /// Like the half-closer, but reads nothing for a while.
    Sleeper,
    /// Sends and never reads.
    Flooder,
    /// Resets the connection in the middle of the echo.
    Resetter,
    /// Closes or aborts before the connect has completed.
    Leaver,
    /// Sends nothing.
    Silent,
}

impl Kind {
    /// The distribution of kinds: most are well-behaved.
    pub const DISTRIBUTION: [Kind; 16] = [
        Kind::Talker,
        Kind::Talker,
        Kind::Talker,
        Kind::Talker,
        Kind::Talker,
        Kind::Talker,
        Kind::Trickler,
        Kind::HalfCloser,
        Kind::HalfCloser,
        Kind::Sleeper,
        Kind::Flooder,
        Kind::Resetter,
        Kind::Resetter,
        Kind::Leaver,
        Kind::Leaver,
        Kind::Silent,
    ];

    /// True if it does not end without a timer or the end of the round.
    pub fn stays(self) -> bool {
        matches!(self, Kind::Flooder | Kind::Silent)
    }
}

/// One client.
pub struct Client {
    pub kind: Kind,
    /// How many bytes it sends and expects back.
    pub goal: usize,
    pub sent: usize,
    pub received: usize,
    /// The offset in the pattern at which its stream begins.
    pub offset: usize,
    /// How many bytes it keeps in flight at most.
    pub window: usize,
    pub message: usize,
    /// A number of its own, so that a timer of an earlier client in the same place is ignored.
    pub number: u32,
}

impl Client {
    /// How many bytes to send next.
    pub fn next_message(&self) -> usize {
        let room = self.window.saturating_sub(self.sent - self.received);
        self.message.min(self.goal - self.sent).min(room)
    }

    pub fn is_finished(&self) -> bool {
        self.received == self.goal
    }

    /// Why this end is wrong for the client, if it is.
    pub fn wrong_end(&self, end: CloseKind) -> Option<String> {
        let orderly = matches!(end, CloseKind::Local | CloseKind::PeerClosed);
        let correct = match self.kind {
            Kind::Talker | Kind::Trickler | Kind::HalfCloser | Kind::Sleeper => {
                orderly && self.is_finished()
            }
            Kind::Silent => orderly,
            Kind::Flooder | Kind::Resetter => end == CloseKind::Aborted,
            Kind::Leaver => orderly || end == CloseKind::Aborted,
        };
        (!correct).then(|| {
            format!(
                "{:?} ended with {end:?}; sent {} of {}, received {}",
                self.kind, self.sent, self.goal, self.received
            )
        })
    }
}
