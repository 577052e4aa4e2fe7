//! The deadline of a wait, where `io_uring_enter` takes none (before 5.11): one TIMEOUT entry, kept from wait to wait. Owns: when it
//! fires, and which one it is. Invariant: at most one is armed that was not told to end.
//!
//! It may fire earlier than the present wait is to end, left over from one before; whoever waits looks at the clock. It is not
//! made to end with the next completion (a count of one): kernels before 5.8 count from the oldest submission that is still in flight,
//! so that beside an armed receive such an entry would stay until its time, and each wait would add another (read in source).

use super::ring::NOT_IN_FLIGHT;
use super::token::{Kind, pack};
use crate::error::Violation;
use crate::id::Key;
use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

pub(super) struct Alarm {
    timespec: Box<types::Timespec>,
    serial: u32,
    armed: Option<Instant>,
    /// Entries without their completion: the armed one, and those that were told to end.
    pub(super) in_flight: usize,
}

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm { timespec: Box::new(types::Timespec::new()), serial: 0, armed: None, in_flight: 0 }
    }

    /// Whether a wait until then ends in time as it is.
    pub(super) fn serves(&self, at: Instant) -> bool {
        self.armed.is_some_and(|armed| armed <= at)
    }

    /// The entry that fires at `at`. The one before it must have been told to end.
    pub(super) fn arm(&mut self, at: Instant, now: Instant) -> Entry {
        let delay = at.saturating_duration_since(now).max(Duration::from_nanos(1));
        self.serial = self.serial.wrapping_add(1);
        self.armed = Some(at);
        self.in_flight += 1;
        // Copied by the kernel at submission.
        *self.timespec = types::Timespec::new().sec(delay.as_secs()).nsec(delay.subsec_nanos());
        opcode::Timeout::new(&raw const *self.timespec).build().user_data(self.token())
    }

    /// The user_data of the armed one, if there is one. The caller cancels it.
    pub(super) fn disarm(&mut self) -> Option<u64> {
        self.armed.take().map(|_| self.token())
    }

    /// One has fired, or ended otherwise.
    pub(super) fn ended(&mut self, serial: u32) -> Result<(), Violation> {
        self.in_flight = self.in_flight.checked_sub(1).ok_or(NOT_IN_FLIGHT)?;
        if serial == self.serial {
            self.armed = None;
        }
        Ok(())
    }

    /// What the entry of this serial number goes by.
    pub(super) fn key(serial: u32) -> Key {
        Key { slot: serial, generation: NonZeroU32::MIN }
    }

    fn token(&self) -> u64 {
        pack(Kind::Timeout, Alarm::key(self.serial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_serves_all_later_waits() {
        let (mut alarm, now) = (Alarm::new(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert!(!alarm.serves(at(50)));
        alarm.arm(at(50), now);
        assert!(alarm.serves(at(50)) && alarm.serves(at(70)) && !alarm.serves(at(20)));
        assert!(alarm.disarm().is_some() && alarm.disarm().is_none());
        alarm.arm(at(20), now);
        assert_eq!(alarm.in_flight, 2);
        // The first one's end says nothing of the second.
        alarm.ended(1).unwrap();
        assert!(alarm.serves(at(20)));
        alarm.ended(2).unwrap();
        assert!(!alarm.serves(at(20)));
        assert_eq!((alarm.in_flight, alarm.ended(2)), (0, Err(NOT_IN_FLIGHT)));
    }
}
