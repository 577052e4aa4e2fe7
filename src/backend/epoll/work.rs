//! The turn of the epoll backend. Owns: readiness and the work list. Invariant: a slot with an
//! armed operation in a ready direction is on a list, so no edge is lost; a slot that has spent
//! its budget goes behind all others, until the next wait. Must not know: how an operation is
//! tried.

use super::{Completed, EpollBackend, Outcome, SendBatch, WAKE_TOKEN, bit};
use crate::backend::{Backend, OpResult};
use crate::error::{Errno, Error, Violation};
use crate::id::Key;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// While there is work, the kernel is asked for more of it only once in so many turns.
const TURNS_PER_WAIT: u32 = 8;
/// How long a connect to a unix socket with a full backlog waits before it tries again: no
/// readiness tells of it.
const UNIX_RETRY: Duration = Duration::from_millis(2);

impl EpollBackend {
    pub(super) fn wait_for_events(&mut self, until: Option<u64>) -> Result<(), Error> {
        if let Some(violation) = self.failed {
            return Err(Error::EngineFailed(violation.0));
        }
        let mut timeout = match until {
            Some(0) => Some(Duration::ZERO),
            Some(until) => Some(Duration::from_nanos(until.saturating_sub(self.now()))),
            None => None,
        };
        self.renew_budgets();
        if self.has_next() {
            timeout = Some(Duration::ZERO);
            self.unasked += 1;
            if self.unasked < TURNS_PER_WAIT && self.retries.is_empty() {
                return Ok(());
            }
        }
        self.unasked = 0;
        if !self.retries.is_empty() {
            timeout = Some(timeout.map_or(UNIX_RETRY, |timeout| timeout.min(UNIX_RETRY)));
        }
        self.stats.syscalls += 1;
        let result = match self.precise_wait && timeout != Some(Duration::ZERO) {
            true => self.epoll.wait_precise(&mut self.events, timeout),
            false => self.epoll.wait(&mut self.events, timeout),
        };
        let count = match result {
            Ok(count) => count,
            Err(Errno(libc::EINTR)) => 0,
            Err(errno) => return Err(Error::Os { call: "epoll_wait", errno }),
        };
        for index in 0..count {
            let event = self.events[index];
            self.note_ready(event.u64, event.events as i32);
        }
        self.retry_connects();
        Ok(())
    }

    fn note_ready(&mut self, token: u64, events: i32) {
        if token == WAKE_TOKEN {
            self.inbox.reset();
            self.complete(Key::NONE, Outcome::Woken);
            return;
        }
        let Some(key) = Key::from_bits(token).filter(|key| self.find(*key).is_some()) else {
            self.stats.unknown_completions += 1;
            return;
        };
        let slot = self.slot(key);
        if events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
            slot.state |= bit::HUNG_UP | bit::READABLE;
            self.note_hangup(key);
        }
        let slot = self.slot(key);
        if events & libc::EPOLLIN != 0 {
            slot.state |= bit::READABLE;
        }
        if events & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
            slot.state = slot.state & !bit::BLOCKED | bit::WRITABLE;
        }
        self.list(key);
    }

    /// Puts a slot on the work list if an armed operation of it can go on.
    #[inline]
    pub(super) fn list(&mut self, key: Key) {
        let slot = &mut self.slots[key.slot()];
        if slot.state & bit::LISTED == 0 && slot.can_work() {
            slot.state |= bit::LISTED;
            self.work.push_back(key);
        }
    }

    /// Arms an operation, of which `kind` are the bits that exclude each other.
    #[inline]
    pub(super) fn arm(&mut self, key: Key, operation: u16, kind: u16) {
        let slot = self.slot(key);
        assert_eq!(slot.state & kind, 0, "one operation of a kind at a time");
        slot.state |= operation;
        self.list(key);
    }

    #[inline(always)]
    pub(super) fn next_completed(&mut self) -> Option<Completed<OwnedFd>> {
        loop {
            if self.failed.is_some() {
                return None;
            }
            if let Some(completed) = self.done.pop_front() {
                return Some(completed);
            }
            let key = self.work.pop_front()?;
            let (turn, budget) = (self.turn, self.parameters.budget);
            let Some(slot) = self.find(key) else { continue };
            slot.state &= !bit::LISTED;
            if !slot.can_work() {
                continue;
            }
            if slot.turn != turn {
                (slot.turn, slot.spent) = (turn, 0);
            }
            if u32::from(slot.spent) >= budget {
                slot.state |= bit::LISTED;
                self.spent.push_back(key);
                continue;
            }
            slot.spent = slot.spent.saturating_add(1);
            let state = slot.state;
            if state & bit::OPERATIONS != bit::RECV
                && let Some(completed) = self.work_on(key, state)
            {
                return Some(completed);
            }
            if state & bit::RECV != 0
                && state & bit::READABLE != 0
                && let Some(completed) = self.recv(key)
            {
                return Some(completed);
            }
        }
    }

    /// Does one thing for a slot that can work, except the most common. `None`: a receive into the
    /// pool is left to do, or nothing.
    #[inline(never)]
    fn work_on(&mut self, key: Key, state: u16) -> Option<Completed<OwnedFd>> {
        let writable = state & bit::WRITABLE != 0;
        let completed = if writable && state & bit::CONNECT != 0 {
            Some(self.connected(key))
        } else if writable && state & bit::SEND != 0 {
            Some(self.send_writable(key))
        } else if state & bit::READABLE == 0 {
            None
        } else if state & bit::ACCEPT != 0 {
            self.accept(key)
        } else if state & bit::RECV_INTO != 0 {
            self.recv_into(key)
        } else {
            return None;
        };
        self.list(key);
        completed
    }

    /// A new turn: those that spent their budget may go on.
    fn renew_budgets(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.work.append(&mut self.spent);
    }

    /// The kernel claimed what cannot be.
    #[cold]
    pub(super) fn fail(&mut self, violation: Violation) {
        self.stats.kernel_violations += 1;
        self.failed.get_or_insert(violation);
    }

    /// Queues the end of a send.
    pub(super) fn complete_send(&mut self, key: Key, batch: SendBatch, result: OpResult) {
        self.complete(key, Outcome::Sent(batch, result));
    }
}
