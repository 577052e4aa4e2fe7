//! One client and what it is up to. Owns: what each kind does next, and how it may end.

use proactor::CloseKind;

/// A kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Messages, and their echo.
    Talker,
    /// One byte at a time.
    Trickler,
    /// All at once, then the FIN, then reads the echo to its end.
    HalfCloser,
    /// The same, and reads nothing for a while.
    Sleeper,
    /// Sends and never reads.
    Flooder,
    /// A reset in the middle of a message.
    Resetter,
    /// Gone before it is there.
    Runner,
    /// Says nothing at all.
    Silent,
}

impl Kind {
    /// Most are decent.
    pub const DRAW: [Kind; 16] = [
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
        Kind::Runner,
        Kind::Runner,
        Kind::Silent,
    ];

    /// True if it stays until it is told to leave.
    pub fn lingers(self) -> bool {
        matches!(self, Kind::Flooder | Kind::Silent)
    }
}

/// One client.
pub struct Actor {
    pub kind: Kind,
    /// How many bytes it means to send, and to have back.
    pub goal: usize,
    pub sent: usize,
    pub received: usize,
    /// Where in the pattern its stream begins.
    pub offset: usize,
    /// How many bytes may be on their way.
    pub window: usize,
    pub message: usize,
    /// The last life that a timer was started in.
    pub life: u32,
}

impl Actor {
    /// How many bytes to send next.
    pub fn next_message(&self) -> usize {
        let room = self.window.saturating_sub(self.sent - self.received);
        self.message.min(self.goal - self.sent).min(room)
    }

    pub fn is_finished(&self) -> bool {
        self.received == self.goal
    }

    /// What is wrong with this end, if something is.
    pub fn objection(&self, end: CloseKind) -> Option<String> {
        let decent = matches!(end, CloseKind::Local | CloseKind::PeerClosed);
        let fine = match self.kind {
            Kind::Talker | Kind::Trickler | Kind::HalfCloser | Kind::Sleeper => {
                decent && self.is_finished()
            }
            Kind::Silent => decent,
            Kind::Flooder | Kind::Resetter => end == CloseKind::Aborted,
            Kind::Runner => decent || end == CloseKind::Aborted,
        };
        (!fine).then(|| {
            format!(
                "{:?} ended with {end:?}; sent {} of {}, had {} back",
                self.kind, self.sent, self.goal, self.received
            )
        })
    }
}
