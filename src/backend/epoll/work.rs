//! The turn of the epoll backend. Owns: the work list. Invariant: what is ready and wanted is on a list; a slot that spent
//! its budget goes to the end, behind everybody else, until the next wait.

use super::{EpollBackend, Op, Outcome, Slot, TURNS_PER_WAIT, Target, UNIX_RETRY, WAKE_TOKEN, bit};
use crate::backend::{Backend, Done, Next};
use crate::buf::Lease;
use crate::error::{Errno, Error};
use crate::id::Key;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::Duration;

impl EpollBackend {
    pub(super) fn wait_for_events(&mut self, until: Option<u64>) -> Result<(), Error> {
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
            self.finish(Key::NONE, Op::Wake, Outcome::Notified);
            return;
        }
        let target = Target { slot: token as u32, listener: token & super::LISTENER_BIT != 0 };
        let slots = if target.listener { &mut self.listeners } else { &mut self.conns };
        // A free slot has generation zero, which is no key's.
        let is_meant = |slot: &Slot| {
            NonZeroU32::new(slot.generation)
                .is_some_and(|generation| super::token(Key { slot: target.slot, generation }, target.listener) == token)
        };
        let Some(slot) = slots.get_mut(target.slot as usize).filter(|slot| is_meant(slot)) else {
            self.stats.unknown_completions += 1;
            return;
        };
        let hung_up = events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0;
        if hung_up {
            slot.state |= bit::HUNG_UP | bit::READABLE;
        }
        if events & libc::EPOLLIN != 0 {
            slot.state |= bit::READABLE;
        }
        if events & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
            slot.state = slot.state & !bit::BLOCKED | bit::WRITABLE;
        }
        self.list(target);
    }

    #[inline(always)]
    pub(super) fn next_thing(&mut self, mut data: impl FnMut(Key, bool, Lease)) -> Next<OwnedFd> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Next::Done(done);
            }
            let Some(target) = self.work.pop_front() else { return Next::Nothing };
            let (turn, budget) = (self.turn, self.tuning.budget);
            let slot = &mut self.slots(target.listener)[target.slot as usize];
            slot.state &= !bit::LISTED;
            let Some(generation) = NonZeroU32::new(slot.generation).filter(|_| slot.can_work()) else { continue };
            if slot.turn != turn {
                (slot.turn, slot.spent) = (turn, 0);
            }
            if u32::from(slot.spent) >= budget {
                slot.state |= bit::LISTED;
                self.spent.push_back(target);
                continue;
            }
            slot.spent = slot.spent.saturating_add(1);
            let (key, state) = (Key { slot: target.slot, generation }, slot.state);
            if state & bit::OPERATIONS != bit::RECV
                && let Some(next) = self.work_on(key, target, state)
            {
                return next;
            }
            if state & bit::RECV != 0 && state & bit::READABLE != 0 {
                match self.recv(key) {
                    Ok(lease) => {
                        data(key, true, lease);
                        return Next::Data;
                    }
                    Err(Some(done)) => return Next::Done(done),
                    Err(None) => {}
                }
            }
        }
    }

    /// Does one thing for a slot that can work, but for the most common. `None`: a receive is left to do, or nothing.
    #[inline(never)]
    fn work_on(&mut self, key: Key, target: Target, state: u16) -> Option<Next<OwnedFd>> {
        let writable = state & bit::WRITABLE != 0;
        let done = if writable && state & bit::CONNECT != 0 {
            Some(self.connected(key))
        } else if writable && state & bit::SEND != 0 {
            self.slot(key).state &= !bit::SEND;
            Some(Done { key, op: Op::Send, more: false, outcome: Outcome::Count(0) })
        } else if state & bit::READABLE == 0 {
            None
        } else if state & bit::ACCEPT != 0 {
            self.accept(key)
        } else if state & bit::FILL != 0 {
            self.recv_into(key)
        } else {
            return None;
        };
        self.list(target);
        done.map(Next::Done)
    }

    /// A new turn: those that spent their budget may go on.
    fn renew_budgets(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.work.append(&mut self.spent);
    }
}
