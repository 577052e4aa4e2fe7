//! Delivery of events to the caller. Owns: the deferred events, and the [`Quota`] of each
//! connection. Invariant: the count of deferred events in a connection's quota is their number.
//! Must not know why an event happened.
//!
//! # Rules
//!
//! 1. **Order per connection.** The events of a connection are delivered in the order in which they
//!    happened. While one of them is deferred, all later ones are deferred too.
//! 2. **Order per listener.** While any event is deferred, the events of listeners are deferred
//!    too.
//! 3. **Budget per connection.** In one turn at most `Tuning::budget` data events of a connection
//!    are delivered. Further ones are deferred, so that other connections get their share.
//! 4. **Share of the buffer.** Deferred events are delivered first, but at first they use at most a
//!    quarter of the caller's buffer. At the end of the turn further ones use the room that is
//!    left.
//! 5. **Bound.** If the caller's buffer is full, or the number of deferred events reaches its
//!    capacity (at least 64), the turn takes no more completions from the backend. They stay in the
//!    kernel, which applies backpressure to the peers.
//! 6. **Bytes per turn.** Where `Backend::next` receives (epoll), a turn ends after
//!    `Tuning::turn_bytes`.
//! 7. **Order of a turn.** Deferred events; events of the flush; completions; timers; the rest of
//!    the deferred events.

use super::Core;
use super::conn::{Conn, flag};
use crate::completion::{Completion, Completions, Event};
use crate::id::{ConnId, Key};
use std::collections::VecDeque;

/// The least bound on the number of deferred events.
const DEFERRED_MIN: usize = 64;

/// The data events of a connection in a turn, and the number of its deferred events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quota {
    /// The turn that `delivered` belongs to. The number wraps after 65,536 turns; a stale count
    /// then only defers events.
    turn: u16,
    /// Data events in that turn.
    delivered: u16,
    /// Deferred events.
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

    /// Counts a data event. False, and nothing is counted, if the budget of the turn is used up.
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
    /// Events that wait for room in the caller's buffer, or for a later turn.
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

    /// True if no event is deferred.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.deferred.is_empty()
    }

    /// Drops the deferred events. For the drop of an engine, after which no poll follows.
    pub(super) fn clear(&mut self) {
        self.deferred.clear();
    }

    /// The number of deferred events of connections that satisfy `is_live`.
    #[cfg(feature = "sim")]
    pub(super) fn count(&self, is_live: impl Fn(Key) -> bool) -> usize {
        self.deferred.iter().filter(|completion| is_live(completion.conn.0)).count()
    }

    /// True while a turn may take another completion from the backend.
    #[inline]
    pub(super) fn has_room(&self, out: &Completions) -> bool {
        !out.is_full() && self.deferred.len() < out.capacity().max(DEFERRED_MIN)
    }

    /// The total of received bytes at which a turn ends; `received` is the total at its begin.
    #[inline]
    pub(super) fn received_bytes_max(&self, received: u64, receives_in_next: bool) -> u64 {
        let turn_bytes = if receives_in_next { self.turn_bytes } else { u64::MAX };
        received.saturating_add(turn_bytes)
    }

    /// True, and the event is counted, if a data event can be delivered at once.
    #[inline(always)]
    pub(super) fn may_deliver_now(&self, conn: &mut Conn, out: &Completions) -> bool {
        conn.delivers_directly() && !out.is_full() && conn.quota.consume(self.turn, self.budget)
    }

    /// How many deferred events are delivered at the begin of a turn.
    pub(super) fn deferred_share(out: &Completions) -> usize {
        out.capacity().div_ceil(4)
    }
}

impl Core {
    /// Delivers or defers an event of a connection.
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

    /// Delivers or defers an event of a timer or a waker.
    pub(super) fn emit_without_conn(&mut self, tag: u64, event: Event, out: &mut Completions) {
        let completion = Completion { conn: ConnId::NONE, tag, event };
        if out.is_full() {
            self.delivery.deferred.push_back(completion)
        } else {
            out.push(completion)
        }
    }

    /// Delivers or defers an event of a listener.
    pub(super) fn emit_for_listener(&mut self, tag: u64, event: Event, out: &mut Completions) {
        match self.delivery.deferred.is_empty() {
            true => self.emit_without_conn(tag, event, out),
            false => {
                self.delivery.deferred.push_back(Completion { conn: ConnId::NONE, tag, event })
            }
        }
    }

    /// Delivers the oldest deferred events, at most `count_max`.
    pub(super) fn deliver_deferred(&mut self, count_max: usize, out: &mut Completions) {
        for _ in 0..count_max {
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

    /// Turns the deferred data of a connection into held data: the caller has paused reads, or gave
    /// a buffer to fill.
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
