//! Completion queue entries as finished operations. Owns: what each result means, and whether it
//! can be. Invariant: a buffer that came with an entry is accounted for before anything else is
//! looked at; an entry of an operation that is not in flight reaches nobody.

use super::alarm::Alarm;
use super::bufring::BufRing;
use super::ops::op_of;
use super::ring::NOT_IN_FLIGHT;
use super::slot::mark;
use super::token::{Kind, Token, unpack};
use super::{Done, Next, Op, Outcome, Uring};
use crate::buf::{Lease, Written};
use crate::error::{Errno, Violation};
use crate::id::Key;
use crate::net::socket;
use io_uring::cqueue;
use std::num::NonZeroU32;
use std::os::fd::{FromRawFd, OwnedFd};

/// IORING_CQE_F_BUFFER: the upper half of the flags is the id of a buffer.
const PICKED_BUFFER: u32 = 1;

impl Uring {
    /// What a completion means to the engine; `None` if it is an affair of the backend. Completions
    /// that belong to nothing are counted and dropped; they end nothing.
    ///
    /// # Errors
    /// It says what cannot be.
    #[inline(always)]
    pub(super) fn translate(
        &mut self,
        user_data: u64,
        result: i32,
        flags: u32,
        data: impl FnMut(Key, bool, Lease),
    ) -> Result<Option<Next<OwnedFd>>, Violation> {
        let Some(token) = unpack(user_data) else {
            self.unknown += 1;
            return Ok(None);
        };
        let lease = match token.kind {
            Kind::Recv | Kind::RecvFirst => self.picked_buffer(token.kind, result, flags)?,
            _ => None,
        };
        let Some(key) = self.key_of(token) else { return self.without_key(token, result, flags) };
        self.check_flags(token.kind, flags)?;
        let more = cqueue::more(flags);
        if !more && !cqueue::notif(flags) {
            self.ring.ended()?;
        }
        match token.kind {
            Kind::Recv | Kind::RecvFirst => self.received(key, token.kind, result, more, lease, data),
            Kind::Send => self.sent(key, result, flags).map(|done| done.map(Next::Done)),
            _ => self.others(key, token.kind, result, more).map(|done| done.map(Next::Done)),
        }
    }

    /// Operations of the backend's own, and what belongs to nothing.
    #[inline(never)]
    fn without_key(&mut self, token: Token, result: i32, flags: u32) -> Result<Option<Next<OwnedFd>>, Violation> {
        match token.kind {
            Kind::Wake if token.is_of(Key::NONE) => {
                self.check_flags(token.kind, flags)?;
                if !std::mem::take(&mut self.wake_armed) {
                    return Err(NOT_IN_FLIGHT);
                }
                self.ring.ended()?;
                self.inbox.reset();
                return Ok(Some(Next::Done(done(Key::NONE, Op::Wake, false, Outcome::Notified))));
            }
            Kind::Timeout if token.is_of(Alarm::key(token.slot)) => {
                self.check_flags(token.kind, flags)?;
                self.ring.alarm.ended(token.slot)?;
                self.ring.ended()?;
            }
            Kind::Cancel if token.is_of(Key::NONE) => {
                self.check_flags(token.kind, flags)?;
                self.ring.cancel_ended()?;
            }
            _ => {
                self.unknown += 1;
                if matches!(token.kind, Kind::Accept | Kind::Socket) && result >= 0 {
                    // SAFETY: the kernel made this descriptor, and nobody else has it.
                    drop(unsafe { OwnedFd::from_raw_fd(result) });
                }
            }
        }
        Ok(None)
    }

    /// Whether an operation of this kind can complete with these flags.
    #[inline(always)]
    fn check_flags(&self, kind: Kind, flags: u32) -> Result<(), Violation> {
        let (may_go_on, picks_buffers) = match kind {
            Kind::Recv => (self.style.multishot_recv, true),
            Kind::RecvFirst => (false, true),
            Kind::Accept => (self.style.multishot_accept, false),
            Kind::Send => (self.style.zero_copy, false),
            _ => (false, false),
        };
        if cqueue::more(flags) && !may_go_on {
            return Err(Violation("a single-shot operation completed and goes on"));
        }
        if flags & PICKED_BUFFER != 0 && !picks_buffers {
            return Err(Violation("a buffer was picked where none is asked for"));
        }
        Ok(())
    }

    #[inline(never)]
    fn others(&mut self, key: Key, kind: Kind, result: i32, more: bool) -> Result<Option<Done<OwnedFd>>, Violation> {
        let slot = if is_of_listener(kind) { self.listener(key) } else { self.slot(key) };
        let in_flight = match op_of(kind) {
            Op::Recv => &mut slot.recv,
            Op::Send => &mut slot.send,
            _ => &mut slot.open,
        };
        if *in_flight != kind {
            return Err(NOT_IN_FLIGHT);
        }
        if !more {
            *in_flight = Kind::Idle;
        }
        Ok(match kind {
            Kind::Fill => return self.filled(key, result),
            Kind::RecvPoll | Kind::FillPoll => self.readable(key, kind, result),
            Kind::SendPoll => {
                self.send_ended(key);
                Some(done(key, Op::Send, false, polled(result, || Outcome::Count(0))))
            }
            Kind::Socket => {
                // SAFETY: the kernel just made this descriptor, and nobody else has it.
                let made = if result < 0 { Err(errno(result)) } else { Ok(unsafe { OwnedFd::from_raw_fd(result) }) };
                self.socket_made(key, made);
                None
            }
            Kind::Connect => Some(done(key, Op::Connect, false, polled(result, || Outcome::Count(0)))),
            Kind::ConnectPoll => {
                self.syscalls += 1;
                let slot = self.slot(key);
                let fd = slot.fd.as_ref().expect("closed only after this");
                let outcome = polled(result, || socket::take_error(fd).map_or(Outcome::Count(0), Outcome::Failed));
                Some(done(key, Op::Connect, false, outcome))
            }
            Kind::Accept => self.accepted(key, result, more),
            Kind::AcceptPoll if result < 0 => Some(done(key, Op::Accept, false, Outcome::Failed(errno(result)))),
            Kind::AcceptPoll => {
                self.step(key, Kind::Accept);
                None
            }
            Kind::Close | Kind::CloseListener => Some(done(key, op_of(kind), false, Outcome::Count(0))),
            Kind::Recv | Kind::RecvFirst | Kind::Send | Kind::Wake | Kind::Timeout | Kind::Cancel | Kind::Idle => None,
        })
    }

    /// The connection or listener that an operation is of.
    #[inline(always)]
    fn key_of(&self, token: Token) -> Option<Key> {
        if matches!(token.kind, Kind::Wake | Kind::Timeout | Kind::Cancel | Kind::Idle) {
            return None;
        }
        let slots = if is_of_listener(token.kind) { &self.listeners } else { &self.conns };
        let generation = NonZeroU32::new(slots.get(token.slot as usize)?.generation)?;
        let key = Key { slot: token.slot, generation };
        (key.generation24() == token.generation24).then_some(key)
    }

    /// The data in a buffer that the kernel picked. Without data (a receive that failed after picking), the claim just ends.
    #[inline]
    fn picked_buffer(&mut self, kind: Kind, result: i32, flags: u32) -> Result<Option<Lease>, Violation> {
        let Some(id) = cqueue::buffer_select(flags) else { return Ok(None) };
        let own = self.single_shot_ring.as_mut().filter(|_| kind == Kind::RecvFirst);
        let ring: Option<&mut BufRing> = own.or(self.buf_ring.as_mut());
        let ring = ring.ok_or(Violation("a buffer was picked where none is offered"))?;
        let lease = ring.deliver(id, result.max(0) as u32, cqueue::buffer_more(flags))?;
        Ok((result > 0).then_some(lease))
    }

    #[inline(always)]
    fn received(
        &mut self,
        key: Key,
        kind: Kind,
        result: i32,
        more: bool,
        lease: Option<Lease>,
        mut data: impl FnMut(Key, bool, Lease),
    ) -> Result<Option<Next<OwnedFd>>, Violation> {
        let slot = self.slot(key);
        if slot.recv != kind {
            return Err(NOT_IN_FLIGHT);
        }
        if !more {
            slot.recv = Kind::Idle;
        }
        let mut lease = lease;
        if let Some(buffer) = slot.take_buffer() {
            let size = self.pool.size() as i32;
            self.slot(key).set(mark::HOT, result == size);
            if result > 0 {
                lease = Some(self.pool.deliver(buffer, result as u32, false)?);
            } else {
                self.pool.put_back(buffer);
            }
            if result == -libc::EAGAIN {
                self.step(key, Kind::RecvPoll);
                return Ok(None);
            }
        }
        if let Some(lease) = lease {
            data(key, more, lease);
            return Ok(Some(Next::Data));
        }
        if result > 0 {
            return Err(Violation("data was received into no buffer"));
        }
        if more {
            return Err(Violation("a receive ended and goes on"));
        }
        if result == -libc::ENOBUFS && kind == Kind::RecvFirst && self.single_shot_ring.is_some() {
            // Its own buffers are all in use; there may be some for the others.
            self.step(key, Kind::Recv);
            return Ok(None);
        }
        let outcome = if result == 0 { Outcome::Count(0) } else { Outcome::Failed(errno(result)) };
        Ok(Some(Next::Done(done(key, Op::Recv, false, outcome))))
    }

    fn filled(&mut self, key: Key, result: i32) -> Result<Option<Done<OwnedFd>>, Violation> {
        if result == -libc::EAGAIN {
            self.step(key, Kind::FillPoll);
            return Ok(None);
        }
        if result > 0 && result as usize > self.windows.of(key).len {
            return Err(Violation("a receive filled a caller's buffer beyond its end"));
        }
        self.windows.forget(key);
        let outcome = match result {
            // SAFETY: the kernel wrote that many bytes at the start of the window, which has as
            // many (checked above).
            1.. => Outcome::Filled(unsafe { Written::new(result as usize) }),
            0 => Outcome::Count(0),
            _ => Outcome::Failed(errno(result)),
        };
        Ok(Some(done(key, Op::Recv, false, outcome)))
    }

    fn readable(&mut self, key: Key, kind: Kind, result: i32) -> Option<Done<OwnedFd>> {
        if result >= 0 {
            self.step(key, if kind == Kind::RecvPoll { Kind::Recv } else { Kind::Fill });
            return None;
        }
        if kind == Kind::FillPoll {
            self.windows.forget(key);
        }
        Some(done(key, Op::Recv, false, Outcome::Failed(errno(result))))
    }

    /// How many bytes a send was given is known to the engine, and so is how many notifications a
    /// connection is owed: it checks.
    #[inline]
    fn sent(&mut self, key: Key, result: i32, flags: u32) -> Result<Option<Done<OwnedFd>>, Violation> {
        if cqueue::notif(flags) {
            self.ring.noticed()?;
            return Ok(Some(done(key, Op::Send, false, Outcome::Notified)));
        }
        if std::mem::replace(&mut self.slot(key).send, Kind::Idle) != Kind::Send {
            return Err(NOT_IN_FLIGHT);
        }
        if result == -libc::EAGAIN && self.style.polled {
            self.step(key, Kind::SendPoll);
            return Ok(None);
        }
        let more = cqueue::more(flags);
        if more {
            self.ring.expect_notice();
        }
        self.send_ended(key);
        Ok(Some(done(key, Op::Send, more, polled(result, || Outcome::Count(result as usize)))))
    }

    #[inline]
    fn send_ended(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.set(mark::UNUSED, false);
        if slot.take(mark::HELD) {
            self.step(key, Kind::Recv);
        }
    }

    fn accepted(&mut self, key: Key, result: i32, more: bool) -> Option<Done<OwnedFd>> {
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
    if result < 0 { Outcome::Failed(errno(result)) } else { success() }
}

fn errno(result: i32) -> Errno {
    Errno(result.saturating_neg())
}

fn is_of_listener(kind: Kind) -> bool {
    matches!(kind, Kind::Accept | Kind::AcceptPoll | Kind::CloseListener)
}
