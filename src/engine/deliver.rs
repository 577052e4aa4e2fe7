//! What the caller is told, and when: fairness, budgets and the order of events.
//!
//! # The rules
//!
//! 1. **Order of a connection.** Its events reach the caller in the order in which they happened.
//!    While one of them waits for the next poll, all later ones wait behind it.
//! 2. **Order of a listener.** Nothing of a listener overtakes anything that waits.
//! 3. **Budget of a connection.** A connection gets at most `Config::budget` events with data in
//!    one turn. What is beyond that waits, and the others get their turn.
//! 4. **Room for all.** What waited from the poll before is delivered first, but takes at most a
//!    quarter of the caller's buffer before others had their turn; what is then left of the room is
//!    filled with the rest of it.
//! 5. **Bound.** When as many events wait as the caller's buffer holds (at least 64), or the buffer
//!    is full, nothing more is taken from the backend in this turn: it stays with the kernel, which
//!    holds the peers back.
//! 6. **Bytes of a turn.** Where receives happen as they are asked for (epoll), a turn ends after
//!    `Tuning::turn_bytes`.
//! 7. **Order of a turn.** What waited; what the flush completes at once; completions; timers; what
//!    waited once more.
//!
//! Owns: the events that wait, and the account of each connection ([`Quota`]). Invariant: a
//! connection's count of waiting events is their number.

use super::Core;
use super::conn::{Conn, flag};
use crate::completion::{Completion, Completions, Event};
use crate::id::{ConnId, Key};
use std::collections::VecDeque;

/// At least so many events may wait for the next poll.
const DEFERRED_MIN: usize = 64;

/// What a connection was given in a turn, and what of it waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quota {
    /// The turn that `delivered` counts in. (After 65,536 turns a count can be taken for one of
    /// now; it only defers.)
    turn: u16,
    /// Events with data.
    delivered: u16,
    /// Events that wait for the next poll.
    deferred: u32,
}

impl Quota {
    #[inline]
    pub(super) fn has_deferred(&self) -> bool {
        self.deferred > 0
    }

    #[cfg(feature = "sim")]
    pub(super) fn deferred(&self) -> usize {
        self.deferred as usize
    }

    /// Counts an event with data; false, and not counted, if the budget of the turn is used up.
    #[inline]
    fn consume(&mut self, turn: u16, budget: u16) -> bool {
        if self.turn != turn {
            (self.turn, self.delivered) = (turn, 0);
        }
        let within = self.delivered < budget;
        self.delivered += u16::from(within);
        within
    }
}

#[derive(Debug)]
pub(super) struct Delivery {
    /// Events beyond a budget or the room of the caller's buffer.
    deferred: VecDeque<Completion>,
    turn: u16,
    budget: u16,
    turn_bytes: u64,
}

impl Delivery {
    pub(super) fn new(budget: u32, turn_bytes: usize) -> Delivery {
        Delivery {
            deferred: VecDeque::new(),
            turn: 0,
            budget: budget as u16,
            turn_bytes: turn_bytes as u64,
        }
    }

    pub(super) fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// True if nothing waits.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.deferred.is_empty()
    }

    /// Forgets what waits: nobody will ask any more.
    pub(super) fn clear(&mut self) {
        self.deferred.clear();
    }

    /// How many events with a live connection wait, as `is_live` sees it.
    #[cfg(feature = "sim")]
    pub(super) fn count(&self, is_live: impl Fn(Key) -> bool) -> usize {
        self.deferred.iter().filter(|completion| is_live(completion.conn.0)).count()
    }

    /// True while another completion may be taken from the backend.
    #[inline]
    pub(super) fn has_room(&self, out: &Completions) -> bool {
        !out.is_full() && self.deferred.len() < out.capacity().max(DEFERRED_MIN)
    }

    /// The number of received bytes at which a turn ends, where receives happen as they are asked
    /// for.
    #[inline]
    pub(super) fn received_bytes_max(&self, received: u64, receives_when_asked: bool) -> u64 {
        let most = if receives_when_asked { self.turn_bytes } else { u64::MAX };
        received.saturating_add(most)
    }

    /// Hands data to the caller at once, if nothing stands in between and the budget allows it.
    #[inline(always)]
    pub(super) fn may_deliver_now(&self, conn: &mut Conn, out: &Completions) -> bool {
        conn.delivers_directly() && !out.is_full() && conn.quota.consume(self.turn, self.budget)
    }

    /// The room that what waited may take before others had their turn.
    pub(super) fn deferred_share(out: &Completions) -> usize {
        out.capacity().div_ceil(4)
    }
}

impl Core {
    /// Tells the caller something about a connection: now, or in the next poll.
    pub(super) fn emit(&mut self, key: Key, event: Event, out: &mut Completions) {
        let Delivery { deferred, turn, budget, .. } = &mut self.delivery;
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        let over = matches!(event, Event::Received(_)) && !conn.quota.consume(*turn, *budget);
        self.stats.budget_deferrals += u64::from(over);
        let completion = Completion { conn: ConnId(key), tag: conn.tag, event };
        let behind = conn.quota.has_deferred();
        if over || behind || out.is_full() {
            deferred.push_back(completion);
            conn.quota.deferred += 1;
        } else {
            out.push(completion);
        }
    }

    /// Tells the caller something that is about no connection.
    pub(super) fn emit_without_conn(&mut self, tag: u64, event: Event, out: &mut Completions) {
        let completion = Completion { conn: ConnId::NONE, tag, event };
        if out.is_full() {
            self.delivery.deferred.push_back(completion)
        } else {
            out.push(completion)
        }
    }

    /// Tells the caller something about a listener.
    pub(super) fn emit_for_listener(&mut self, tag: u64, event: Event, out: &mut Completions) {
        match self.delivery.deferred.is_empty() {
            true => self.emit_without_conn(tag, event, out),
            false => {
                self.delivery.deferred.push_back(Completion { conn: ConnId::NONE, tag, event })
            }
        }
    }

    /// Delivers what waits, at most `most` of it.
    pub(super) fn deliver_deferred(&mut self, most: usize, out: &mut Completions) {
        for _ in 0..most {
            if out.is_full() {
                return;
            }
            let Some(completion) = self.delivery.deferred.pop_front() else { return };
            if let Some(conn) = self.endpoints.conn_mut(completion.conn.0) {
                conn.quota.deferred = conn.quota.deferred.saturating_sub(1);
            }
            out.push(completion);
        }
    }

    /// Takes back received data that waits: the caller wants it later, or elsewhere.
    pub(super) fn hold_deferred(&mut self, key: Key) {
        let Some(conn) = self.endpoints.conn_mut(key).filter(|conn| conn.quota.has_deferred())
        else {
            return;
        };
        for completion in std::mem::take(&mut self.delivery.deferred) {
            match completion.event {
                Event::Received(lease) if completion.conn.0 == key => {
                    conn.quota.deferred -= 1;
                    conn.hold(lease);
                }
                Event::ReadClosed if completion.conn.0 == key => {
                    conn.quota.deferred -= 1;
                    conn.set(flag::EOF_HELD);
                }
                event => self.delivery.deferred.push_back(Completion { event, ..completion }),
            }
        }
    }
}
