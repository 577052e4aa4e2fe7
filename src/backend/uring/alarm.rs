//! The deadline of a wait, where `io_uring_enter` takes none (before 5.11): one TIMEOUT entry, kept
//! from wait to wait. Owns: when it fires, and which one it is. Invariant: at most one is armed
//! that was not told to end.
//!
//! It may fire earlier than the present wait is to end, left over from one before; whoever waits
//! looks at the clock. It is not made to end with the next completion (a count of one): kernels
//! before 5.8 count from the oldest submission that is still in flight, so that beside an armed
//! receive such an entry would stay until its time, and each wait would add another (read in
//! source).

use super::token::{Kind, pack};
use crate::id::{EngineNumber, Key};
use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use std::time::{Duration, Instant};

/// Serial numbers are slots of tokens.
const SERIALS: u32 = 1 << 20;

pub(super) struct Alarm {
    engine: EngineNumber,
    timespec: Box<types::Timespec>,
    serial: u32,
    armed: Option<Instant>,
    /// Entries without their completion: the armed one, and those that were told to end.
    pub(super) in_flight: usize,
}

impl Alarm {
    pub(super) fn new(engine: EngineNumber) -> Alarm {
        Alarm {
            engine,
            timespec: Box::new(types::Timespec::new()),
            serial: 0,
            armed: None,
            in_flight: 0,
        }
    }

    /// Whether a wait until then ends in time as it is.
    pub(super) fn serves(&self, at: Instant) -> bool {
        self.armed.is_some_and(|armed| armed <= at)
    }

    /// The entry that fires at `at`. The one before it must have been told to end.
    pub(super) fn arm(&mut self, at: Instant, now: Instant) -> Entry {
        let delay = at.saturating_duration_since(now).max(Duration::from_nanos(1));
        self.serial = (self.serial + 1) % SERIALS;
        self.armed = Some(at);
        self.in_flight += 1;
        // Copied by the kernel at submission.
        *self.timespec = types::Timespec::new().sec(delay.as_secs()).nsec(delay.subsec_nanos());
        opcode::Timeout::new(&raw const *self.timespec).build().user_data(self.token())
    }

    /// The token of the armed one, which is to be told to end; if there is one.
    pub(super) fn disarm(&mut self) -> Option<u64> {
        self.armed.take().map(|_| self.token())
    }

    /// One has fired, or ended otherwise. False if none was in flight.
    pub(super) fn ended(&mut self, key: Key) -> bool {
        let Some(left) = self.in_flight.checked_sub(1) else { return false };
        self.in_flight = left;
        if key.slot() == self.serial as usize {
            self.armed = None;
        }
        true
    }

    fn token(&self) -> u64 {
        pack(Kind::Timeout, Key::new(self.serial as usize, 1, self.engine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_serves_all_later_waits() {
        let (mut alarm, now) = (Alarm::new(EngineNumber::TEST), Instant::now());
        let serial = |serial| Key::new(serial, 1, EngineNumber::TEST);
        let at = |ms| now + Duration::from_millis(ms);
        assert!(!alarm.serves(at(50)));
        alarm.arm(at(50), now);
        assert!(alarm.serves(at(50)) && alarm.serves(at(70)) && !alarm.serves(at(20)));
        assert!(alarm.disarm().is_some() && alarm.disarm().is_none());
        alarm.arm(at(20), now);
        assert_eq!(alarm.in_flight, 2);
        // The first one's end says nothing of the second.
        assert!(alarm.ended(serial(1)));
        assert!(alarm.serves(at(20)));
        assert!(alarm.ended(serial(2)));
        assert!(!alarm.serves(at(20)));
        assert_eq!(alarm.in_flight, 0);
        assert!(!alarm.ended(serial(2)), "no more ended than were armed");
    }
}
