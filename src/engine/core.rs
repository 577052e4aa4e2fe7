//! What an engine is apart from its backend. Owns: the tables of connections and listeners, the timer wheel, what waits to be
//! started and what waits to be told. Invariant: a connection that wants something started is on the dirty list; one that
//! ended is in no table.

use super::conn::{Conn, Listener, Phase, flag};
use super::spin::Spin;
use crate::buf::{Disposal, QueuePool, SendQueue};
use crate::completion::{Completion, Completions, Event};
use crate::config::Config;
use crate::error::{Error, Violation};
use crate::id::{ConnId, Key};
use crate::mutant::{self, Mutant};
use crate::stats::Stats;
use crate::table::Table;
use crate::timer::{Owner, Wheel};
use crate::waker::{Bell, Inbox};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Connections that want something started, and whom to tell of that.
#[derive(Debug, Default)]
pub(super) struct Staged {
    pub(super) conns: VecDeque<Key>,
    /// Set when the engine sits in a foreign loop, which must hear of what is staged.
    pub(super) foreign: Option<Arc<Bell>>,
    kicked: bool,
}

impl Staged {
    #[inline]
    pub(super) fn mark(&mut self, conn: &mut Conn, key: Key) {
        if !conn.has(flag::DIRTY) {
            conn.set(flag::DIRTY);
            self.conns.push_back(key);
            self.kick();
        }
    }

    /// Tells a foreign loop that `poll` has something to do.
    #[inline]
    pub(super) fn kick(&mut self) {
        if let Some(bell) = self.foreign.as_ref().filter(|_| !self.kicked) {
            self.kicked = true;
            bell.ring();
        }
    }

    pub(super) fn unkick(&mut self) {
        self.kicked = false;
    }
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) conns: Table<Conn>,
    pub(super) listeners: Table<Listener>,
    pub(super) wheel: Wheel,
    pub(super) user_timers: usize,
    pub(super) staged: Staged,
    pub(super) dirty_listeners: VecDeque<Key>,
    /// Connections that wait for a receive buffer, first come first served.
    pub(super) parked: VecDeque<Key>,
    /// Completions beyond a budget or a buffer's capacity: told in the next poll.
    pub(super) pending: VecDeque<Completion>,
    pub(super) paused_listeners: usize,
    pub(super) spare_queues: QueuePool,
    pub(super) disposal: Disposal,
    /// Tags of payloads that an operation sent, on their way to the caller. Empty between operations.
    pub(super) sent_tags: Vec<u64>,
    pub(super) stats: Stats,
    /// Nanoseconds since the backend's epoch, read once or twice a turn.
    pub(super) now: u64,
    pub(super) turn: u32,
    pub(super) spin: Spin,
    pub(super) inbox: Arc<Inbox>,
    pub(super) draining: bool,
    /// When `drain` gives up on what is still open.
    pub(super) drain_until: u64,
    /// Connections told to the caller and not yet closed.
    pub(super) live: usize,
    /// What the kernel said that cannot be, by the engine's own books: the turn ends here, and so
    /// does the engine.
    pub(super) violation: Option<Violation>,
    /// Set when the engine has failed; says why.
    pub(super) failed: Option<&'static str>,
    /// The last poll ended in a panic: some of its turn is left to do.
    pub(super) interrupted: bool,
}

impl Core {
    pub(super) fn new(config: Config, inbox: Arc<Inbox>) -> Core {
        let spin = Spin::new(u64::try_from(config.spin.as_nanos()).unwrap_or(u64::MAX));
        Core {
            conns: Table::with_limit(config.connections_max),
            listeners: Table::with_limit(config.listeners_max),
            wheel: Wheel::new(),
            user_timers: 0,
            config,
            staged: Staged::default(),
            dirty_listeners: VecDeque::new(),
            parked: VecDeque::new(),
            pending: VecDeque::new(),
            paused_listeners: 0,
            spare_queues: QueuePool::default(),
            disposal: Disposal::default(),
            sent_tags: Vec::new(),
            stats: Stats::default(),
            now: 0,
            turn: 0,
            spin,
            inbox,
            draining: false,
            drain_until: u64::MAX,
            live: 0,
            violation: None,
            failed: None,
            interrupted: false,
        }
    }

    /// The connection behind an id that the caller holds; a ghost is nothing to the caller any more.
    #[inline]
    pub(super) fn caller_conn(&mut self, key: Key) -> Option<&mut Conn> {
        self.conns.get_mut(key).filter(|conn| conn.phase != Phase::Ghost)
    }

    /// As [`Core::caller_conn`], to look at.
    pub(super) fn look(&self, key: Key) -> Result<&Conn, Error> {
        self.conns.get(key).filter(|conn| conn.phase != Phase::Ghost).ok_or(Error::Stale)
    }

    pub(super) fn conn(&mut self, key: Key) -> Result<&mut Conn, Error> {
        self.caller_conn(key).ok_or(Error::Stale)
    }

    #[inline]
    pub(super) fn mark_dirty(&mut self, key: Key) {
        if let Some(conn) = self.conns.get_mut(key) {
            self.staged.mark(conn, key);
        }
    }

    pub(super) fn mark_listener_dirty(&mut self, key: Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if !listener.dirty {
            listener.dirty = true;
            self.dirty_listeners.push_back(key);
            self.staged.kick();
        }
    }

    /// True if something waits to be started.
    pub(super) fn has_staged(&self) -> bool {
        !self.staged.conns.is_empty() || !self.dirty_listeners.is_empty()
    }

    /// True if a poll has something to do at once.
    pub(super) fn has_work(&self) -> bool {
        self.has_staged() || !self.pending.is_empty() || self.interrupted
    }

    /// Tells the caller something about a connection: now, or in the next poll if the buffer is full, the connection has used
    /// up its budget, or something of it waits already.
    pub(super) fn emit(&mut self, key: Key, event: Event, out: &mut Completions) {
        let (turn, budget) = (self.turn, self.config.budget as u16);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let over = matches!(event, Event::Received(_)) && !conn.within_budget(turn, budget);
        self.stats.budget_deferrals += u64::from(over);
        let completion = |event| Completion { conn: ConnId(key), tag: conn.tag, event };
        let waits = conn.deferred > 0 && !mutant::is(Mutant::Overtaking);
        if over || waits || out.is_full() {
            self.pending.push_back(completion(event));
            conn.deferred += 1;
        } else {
            out.push(completion(event));
        }
    }

    /// Tells the caller something that is about no connection.
    pub(super) fn emit_other(&mut self, tag: u64, event: Event, out: &mut Completions) {
        let completion = Completion { conn: ConnId::NONE, tag, event };
        if out.is_full() { self.pending.push_back(completion) } else { out.push(completion) }
    }

    /// Tells the caller something about a listener: never before what was told of it earlier.
    pub(super) fn emit_of_listener(&mut self, tag: u64, event: Event, out: &mut Completions) {
        match self.pending.is_empty() {
            true => self.emit_other(tag, event, out),
            false => self.pending.push_back(Completion { conn: ConnId::NONE, tag, event }),
        }
    }

    /// Tells what waits, at most `most` of it.
    pub(super) fn deliver_pending(&mut self, most: usize, out: &mut Completions) {
        for _ in 0..most {
            if out.is_full() {
                return;
            }
            let Some(completion) = self.pending.pop_front() else { return };
            if let Some(conn) = self.conns.get_mut(completion.conn.0) {
                conn.deferred = conn.deferred.saturating_sub(1);
            }
            out.push(completion);
        }
    }

    /// Takes back received data that waits to be told: the caller wants it later, or elsewhere.
    pub(super) fn recall_pending(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.deferred > 0) else { return };
        for completion in std::mem::take(&mut self.pending) {
            match completion.event {
                Event::Received(lease) if completion.conn.0 == key => {
                    conn.deferred -= 1;
                    conn.cold().stash.push_back(lease);
                }
                Event::ReadClosed if completion.conn.0 == key => {
                    conn.deferred -= 1;
                    conn.set(flag::EOF_HELD);
                }
                event => self.pending.push_back(Completion { event, ..completion }),
            }
        }
    }

    /// The send queue of a connection, made if there is none.
    #[inline]
    pub(super) fn queue_of<'a>(conn: &'a mut Conn, spare: &mut QueuePool) -> &'a mut SendQueue {
        conn.queue.get_or_insert_with(|| spare.take())
    }

    /// Gives an emptied queue to the next connection that sends.
    pub(super) fn recycle_queue(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Some(queue) = conn.queue.take_if(|queue| queue.is_idle()) {
            self.spare_queues.give(queue);
        }
    }

    /// Sets the one deadline of a connection, or takes it away.
    pub(super) fn set_conn_timer(&mut self, key: Key, deadline: Option<u64>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match (conn.timer, deadline) {
            (Some(timer), Some(deadline)) => {
                self.wheel.reset(timer, deadline);
            }
            (Some(timer), None) => {
                self.wheel.cancel(timer);
                conn.timer = None;
            }
            (None, Some(deadline)) => conn.timer = Some(self.wheel.add(deadline, Owner::Conn(key))),
            (None, None) => {}
        }
    }

    /// When `poll` has something to do although nothing happened.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        match self.has_work() {
            true => Some(self.now),
            false => self.wheel.next_deadline_ns(),
        }
    }

    pub(super) fn later(&self, delay: Duration) -> u64 {
        self.now.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX))
    }
}
