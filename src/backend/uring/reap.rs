//! Completion queue entries as finished operations. Owns: what each result means. Invariant: a buffer that came with an entry is
//! accounted for before anything else is looked at.

use super::ops::op_of;
use super::slot::mark;
use super::token::{Kind, Token, unpack};
use super::{Done, Next, Op, Outcome, Uring};
use crate::buf::{Lease, Written};
use crate::error::Errno;
use crate::id::Key;
use crate::net::socket;
use io_uring::cqueue;
use std::num::NonZeroU32;
use std::os::fd::{FromRawFd, OwnedFd};

impl Uring {
    /// What a completion means to the engine; `None` if it is an affair of the backend.
    #[inline(always)]
    pub(super) fn translate(
        &mut self,
        entry: &cqueue::Entry,
        data: impl FnMut(Key, bool, Lease),
    ) -> Option<Next<OwnedFd>> {
        let (result, flags) = (entry.result(), entry.flags());
        let Some(token) = unpack(entry.user_data()) else {
            self.unknown += 1;
            return None;
        };
        let lease = self.picked_buffer(result, flags);
        let more = cqueue::more(flags);
        match token.kind {
            Kind::Wake => {
                self.wake_armed = false;
                self.inbox.reset();
                return Some(Next::Done(done(Key::NONE, Op::Wake, false, Outcome::Notified)));
            }
            Kind::Timeout => {
                self.ring.alarm.ended(token.slot);
                return None;
            }
            Kind::Cancel => return None,
            _ => {}
        }
        let Some(key) = self.key_of(token) else {
            self.unknown += 1;
            if matches!(token.kind, Kind::Accept | Kind::Socket) && result >= 0 {
                // SAFETY: the kernel made this descriptor, and nobody else has it.
                drop(unsafe { OwnedFd::from_raw_fd(result) });
            }
            return None;
        };
        match token.kind {
            Kind::Recv => self.received(key, result, more, lease, data),
            Kind::Send => self.sent(key, result, flags).map(Next::Done),
            _ => self.others(key, token.kind, result, more).map(Next::Done),
        }
    }

    #[inline(never)]
    fn others(&mut self, key: Key, kind: Kind, result: i32, more: bool) -> Option<Done<OwnedFd>> {
        match kind {
            Kind::Fill => self.filled(key, result),
            Kind::RecvPoll | Kind::FillPoll => self.readable(key, kind, result),
            Kind::SendPoll => {
                self.send_ended(key);
                Some(done(key, Op::Send, false, polled(result, || Outcome::Count(0))))
            }
            Kind::Socket => {
                self.slot(key).open = Kind::Idle;
                // SAFETY: the kernel just made this descriptor, and nobody else has it.
                let made = if result < 0 { Err(Errno(-result)) } else { Ok(unsafe { OwnedFd::from_raw_fd(result) }) };
                self.socket_made(key, made);
                None
            }
            Kind::Connect => {
                self.slot(key).open = Kind::Idle;
                Some(done(key, Op::Connect, false, polled(result, || Outcome::Count(0))))
            }
            Kind::ConnectPoll => {
                self.syscalls += 1;
                let slot = self.slot(key);
                slot.open = Kind::Idle;
                let fd = slot.fd.as_ref().expect("closed only after this");
                let outcome = polled(result, || socket::take_error(fd).map_or(Outcome::Count(0), Outcome::Failed));
                Some(done(key, Op::Connect, false, outcome))
            }
            Kind::Accept => self.accepted(key, result, more),
            Kind::AcceptPoll => {
                self.listener(key).open = Kind::Idle;
                if result < 0 {
                    return Some(done(key, Op::Accept, false, Outcome::Failed(Errno(-result))));
                }
                self.step(key, Kind::Accept);
                None
            }
            Kind::Close | Kind::CloseListener => Some(done(key, op_of(kind), false, Outcome::Count(0))),
            Kind::Recv | Kind::Send | Kind::Wake | Kind::Timeout | Kind::Cancel | Kind::Idle => None,
        }
    }

    fn key_of(&self, token: Token) -> Option<Key> {
        let listener = matches!(token.kind, Kind::Accept | Kind::AcceptPoll | Kind::CloseListener);
        let slots = if listener { &self.listeners } else { &self.conns };
        let generation = NonZeroU32::new(slots.get(token.slot as usize)?.generation)?;
        let key = Key { slot: token.slot, generation };
        (key.generation24() == token.generation24).then_some(key)
    }

    /// The data in a buffer that the kernel picked. Without data (a receive that failed after picking), the claim just ends.
    #[inline]
    fn picked_buffer(&mut self, result: i32, flags: u32) -> Option<Lease> {
        let id = cqueue::buffer_select(flags)?;
        let more = cqueue::buffer_more(flags);
        if let Some(buf_ring) = self.buf_ring.as_mut().filter(|_| !more) {
            buf_ring.used_up();
        }
        let lease = self.pool.deliver(id, result.max(0) as u32, more);
        (result > 0).then_some(lease)
    }

    #[inline(always)]
    fn received(
        &mut self,
        key: Key,
        result: i32,
        more: bool,
        lease: Option<Lease>,
        mut data: impl FnMut(Key, bool, Lease),
    ) -> Option<Next<OwnedFd>> {
        let slot = self.conns.get_mut(key.slot as usize)?;
        if !more {
            slot.recv = Kind::Idle;
        }
        let mut lease = lease;
        if let Some(buffer) = slot.take_buffer() {
            let size = self.pool.size() as i32;
            slot.set(mark::HOT, result == size);
            if result > 0 {
                lease = Some(self.pool.deliver(buffer, result as u32, false));
            } else {
                self.pool.put_back(buffer);
            }
            if result == -libc::EAGAIN {
                self.step(key, Kind::RecvPoll);
                return None;
            }
        }
        if let Some(lease) = lease {
            data(key, more, lease);
            return Some(Next::Data);
        }
        let outcome =
            if result == 0 { Outcome::Count(0) } else { Outcome::Failed(Errno(result.saturating_neg().max(1))) };
        Some(Next::Done(done(key, Op::Recv, more, outcome)))
    }

    fn filled(&mut self, key: Key, result: i32) -> Option<Done<OwnedFd>> {
        self.slot(key).recv = Kind::Idle;
        if result == -libc::EAGAIN {
            self.step(key, Kind::FillPoll);
            return None;
        }
        self.windows.forget(key);
        let outcome = match result {
            // SAFETY: the kernel wrote that many bytes at the start of the window.
            1.. => Outcome::Filled(unsafe { Written::new(result as usize) }),
            0 => Outcome::Count(0),
            _ => Outcome::Failed(Errno(-result)),
        };
        Some(done(key, Op::Recv, false, outcome))
    }

    fn readable(&mut self, key: Key, kind: Kind, result: i32) -> Option<Done<OwnedFd>> {
        self.slot(key).recv = Kind::Idle;
        if result >= 0 {
            self.step(key, if kind == Kind::RecvPoll { Kind::Recv } else { Kind::Fill });
            return None;
        }
        if kind == Kind::FillPoll {
            self.windows.forget(key);
        }
        Some(done(key, Op::Recv, false, Outcome::Failed(Errno(-result))))
    }

    #[inline]
    fn sent(&mut self, key: Key, result: i32, flags: u32) -> Option<Done<OwnedFd>> {
        if cqueue::notif(flags) {
            return Some(done(key, Op::Send, false, Outcome::Notified));
        }
        if result == -libc::EAGAIN && self.style.polled {
            self.slot(key).send = Kind::Idle;
            self.step(key, Kind::SendPoll);
            return None;
        }
        self.send_ended(key);
        Some(done(key, Op::Send, cqueue::more(flags), polled(result, || Outcome::Count(result as usize))))
    }

    #[inline]
    fn send_ended(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.send = Kind::Idle;
        slot.set(mark::UNUSED, false);
        if slot.take(mark::HELD) {
            self.step(key, Kind::Recv);
        }
    }

    fn accepted(&mut self, key: Key, result: i32, more: bool) -> Option<Done<OwnedFd>> {
        if !more {
            self.listener(key).open = Kind::Idle;
        }
        if result == -libc::EAGAIN && self.style.polled {
            self.step(key, Kind::AcceptPoll);
            return None;
        }
        let outcome = polled(result, || {
            // SAFETY: the kernel just made this descriptor, and nobody else has it.
            Outcome::Socket(unsafe { OwnedFd::from_raw_fd(result) })
        });
        Some(done(key, Op::Accept, more, outcome))
    }
}

fn done(key: Key, op: Op, more: bool, outcome: Outcome<OwnedFd>) -> Done<OwnedFd> {
    Done { key, op, more, outcome }
}

/// A negative result is an error number.
fn polled(result: i32, success: impl FnOnce() -> Outcome<OwnedFd>) -> Outcome<OwnedFd> {
    if result < 0 { Outcome::Failed(Errno(-result)) } else { success() }
}
