//! The timeout of a wait on kernels whose `io_uring_enter` takes none (before 5.11, EXT_ARG): one
//! TIMEOUT SQE, reused by later waits. Owns: its deadline, its serial number and its timespec.
//! Invariant: at most one TIMEOUT is armed; all others in flight are being cancelled. Must not know
//! what is waited for.
//!
//! The armed TIMEOUT may fire before the end of the current wait, because an earlier wait armed it.
//! So a caller checks the clock after each wait. Its completion count is 0, not 1: kernels before
//! 5.8 count completions from the oldest submission that is still in flight (read in the kernel
//! source). Beside an armed receive a TIMEOUT with count 1 would stay in flight until its deadline,
//! and each wait would add another one.

use super::token::{Kind, pack};
use crate::id::{EngineNumber, Key};
use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use std::time::{Duration, Instant};

/// The token of a TIMEOUT holds its serial number as the slot of a key.
const SERIALS: u32 = 1 << 20;

pub(super) struct WaitTimeout {
    engine: EngineNumber,
    timespec: Box<types::Timespec>,
    serial: u32,
    deadline: Option<Instant>,
    /// TIMEOUTs without a completion: the armed one, and those being cancelled.
    pub(super) in_flight: usize,
}

impl WaitTimeout {
    pub(super) fn new(engine: EngineNumber) -> WaitTimeout {
        WaitTimeout {
            engine,
            timespec: Box::new(types::Timespec::new()),
            serial: 0,
            deadline: None,
            in_flight: 0,
        }
    }

    /// True if the armed TIMEOUT fires at `deadline` or earlier.
    pub(super) fn covers(&self, deadline: Instant) -> bool {
        self.deadline.is_some_and(|armed| armed <= deadline)
    }

    /// The SQE of a TIMEOUT that fires at `deadline`. The caller must have cancelled the one before
    /// ([`WaitTimeout::disarm`]).
    pub(super) fn arm(&mut self, deadline: Instant, now: Instant) -> Entry {
        let delay = deadline.saturating_duration_since(now).max(Duration::from_nanos(1));
        self.serial = (self.serial + 1) % SERIALS;
        self.deadline = Some(deadline);
        self.in_flight += 1;
        // The kernel copies it at submission.
        *self.timespec = types::Timespec::new().sec(delay.as_secs()).nsec(delay.subsec_nanos());
        opcode::Timeout::new(&raw const *self.timespec).build().user_data(self.token())
    }

    /// The token of the armed TIMEOUT, if there is one. The caller cancels it.
    pub(super) fn disarm(&mut self) -> Option<u64> {
        self.deadline.take().map(|_| self.token())
    }

    /// A TIMEOUT completed: it fired or was cancelled. False if none was in flight.
    pub(super) fn completed(&mut self, key: Key) -> bool {
        let Some(in_flight) = self.in_flight.checked_sub(1) else { return false };
        self.in_flight = in_flight;
        if key.slot() == self.serial as usize {
            self.deadline = None;
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
    fn one_timeout_covers_later_waits() {
        let (mut timeout, now) = (WaitTimeout::new(EngineNumber::TEST), Instant::now());
        let serial = |serial| Key::new(serial, 1, EngineNumber::TEST);
        let at = |ms| now + Duration::from_millis(ms);
        assert!(!timeout.covers(at(50)));
        timeout.arm(at(50), now);
        assert!(timeout.covers(at(50)) && timeout.covers(at(70)) && !timeout.covers(at(20)));
        assert!(timeout.disarm().is_some() && timeout.disarm().is_none());
        timeout.arm(at(20), now);
        assert_eq!(timeout.in_flight, 2);
        // The completion of the first one does not disarm the second.
        assert!(timeout.completed(serial(1)));
        assert!(timeout.covers(at(20)));
        assert!(timeout.completed(serial(2)));
        assert!(!timeout.covers(at(20)));
        assert_eq!(timeout.in_flight, 0);
        assert!(!timeout.completed(serial(2)), "more completions than TIMEOUTs in flight");
    }
}
