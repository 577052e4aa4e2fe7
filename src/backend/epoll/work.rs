//! The turn of the epoll backend. Owns: readiness and the work list. Invariants: a slot with an
//! armed operation in a ready direction is on a list, so no edge is lost; a slot that has used up
//! its budget continues after the next wait, behind all others. Must not know: the system calls of
//! operations.

use super::{Completed, EpollBackend, Outcome, SendBatch, WAKE_TOKEN, bit};
use crate::backend::{Backend, OpResult};
use crate::error::{Errno, Error, Violation};
use crate::id::Key;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// While the work list is not empty, epoll_wait(2) is called once in this many turns.
const WAIT_TURNS_MAX: u32 = 8;
/// How long a connect to a unix socket with a full backlog waits before it is retried. No readiness
/// event reports that the backlog has room: connect(2) returns EAGAIN.
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
            self.turns_since_wait += 1;
            if self.turns_since_wait < WAIT_TURNS_MAX && self.retries.is_empty() {
                return Ok(());
            }
        }
        self.turns_since_wait = 0;
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
            self.apply_event(event.u64, event.events as i32);
        }
        self.retry_connects();
        Ok(())
    }

    fn apply_event(&mut self, token: u64, events: i32) {
        if token == WAKE_TOKEN {
            self.waker_shared.reset();
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
            self.check_hangup(key);
        }
        let slot = self.slot(key);
        if events & libc::EPOLLIN != 0 {
            slot.state |= bit::READABLE;
        }
        if events & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
            slot.state = slot.state & !bit::BLOCKED | bit::WRITABLE;
        }
        self.add_work(key);
    }

    /// Adds a slot to the work list if an armed operation of it can continue.
    #[inline]
    pub(super) fn add_work(&mut self, key: Key) {
        let slot = &mut self.slots[key.slot()];
        if slot.state & bit::IN_WORK_LIST == 0 && slot.can_progress() {
            slot.state |= bit::IN_WORK_LIST;
            self.work.push_back(key);
        }
    }

    /// Arms an operation. `kind` has the bits of all operations of the same kind.
    #[inline]
    pub(super) fn arm(&mut self, key: Key, operation: u16, kind: u16) {
        let slot = self.slot(key);
        assert_eq!(slot.state & kind, 0, "an operation of the kind is in flight");
        slot.state |= operation;
        self.add_work(key);
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
            slot.state &= !bit::IN_WORK_LIST;
            if !slot.can_progress() {
                continue;
            }
            if slot.turn != turn {
                (slot.turn, slot.spent) = (turn, 0);
            }
            if u32::from(slot.spent) >= budget {
                slot.state |= bit::IN_WORK_LIST;
                self.spent.push_back(key);
                continue;
            }
            slot.spent = slot.spent.saturating_add(1);
            let state = slot.state;
            if state & bit::OPERATIONS != bit::RECV
                && let Some(completed) = self.progress(key, state)
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

    /// Performs one operation of a slot on the work list, except a receive into the pool, which the
    /// caller inlines. `None`: nothing has completed.
    #[inline(never)]
    fn progress(&mut self, key: Key, state: u16) -> Option<Completed<OwnedFd>> {
        let writable = state & bit::WRITABLE != 0;
        let completed = if writable && state & bit::CONNECT != 0 {
            Some(self.finish_connect(key))
        } else if writable && state & bit::SEND != 0 {
            Some(self.finish_waiting_send(key))
        } else if state & bit::READABLE == 0 {
            None
        } else if state & bit::ACCEPT != 0 {
            self.accept(key)
        } else if state & bit::RECV_INTO != 0 {
            self.recv_into(key)
        } else {
            return None;
        };
        self.add_work(key);
        completed
    }

    /// Starts a turn: slots that had used up their budget continue.
    fn renew_budgets(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.work.append(&mut self.spent);
    }

    /// The kernel returned an invalid value.
    #[cold]
    pub(super) fn fail(&mut self, violation: Violation) {
        self.stats.kernel_violations += 1;
        self.failed.get_or_insert(violation);
    }

    /// Queues the completion of a send.
    pub(super) fn complete_send(&mut self, key: Key, batch: SendBatch, result: OpResult) {
        self.complete(key, Outcome::Sent(batch, result));
    }
}
