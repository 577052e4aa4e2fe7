//! Completion queue entries as completed operations. Owns: whose a completion is, and whether it
//! can be. What it means is in the file of its operation. Invariant: a completion is passed on only
//! if its operation is in flight in its slot.

use super::Uring;
use super::entry::descriptor;
use super::op::{op_of, status};
use super::token::{Kind, Token, unpack};
use crate::backend::{Completed, Outcome};
use crate::error::Violation;
use crate::id::Key;
use io_uring::cqueue;
use std::os::fd::OwnedFd;

const NOT_IN_FLIGHT: Violation = Violation("a completion for an operation that is not in flight");
const PICKED: Violation = Violation("an operation picked a receive buffer, and none is asked for");
const NOTIFIED: Violation = Violation("a notification of an operation that has none");
pub(super) const GOES_ON: Violation = Violation("an operation that completes once goes on");
/// IORING_CQE_F_BUFFER, F_MORE and F_NOTIF: what a completion that is the only one of its operation
/// does not have.
const SPECIAL: u32 = 1 | 1 << 1 | 1 << 3;

impl Uring {
    /// What a completion means to the engine; `None` if it is an affair of the backend.
    #[inline(always)]
    pub(super) fn translate(
        &mut self,
        user_data: u64,
        result: i32,
        flags: u32,
    ) -> Option<Completed<OwnedFd>> {
        let more = cqueue::more(flags);
        let Some(token) = unpack(user_data, self.engine) else {
            self.stats.unknown_completions += 1;
            return None;
        };
        let key = token.key;
        match self.slots.get_mut(key.slot()) {
            Some(slot) if slot.generation == key.generation() => match token.kind {
                // A receive that goes on, or a send, of those that are in flight: the common cases.
                Kind::Recv | Kind::RecvFirst
                    if slot.recv == token.kind && !cqueue::notif(flags) =>
                {
                    if !more {
                        slot.recv = Kind::Idle;
                        self.ring.ended();
                    }
                    self.received(key, token.kind, (result, flags), more)
                }
                Kind::Send if slot.send == Kind::Send && flags & SPECIAL == 0 => {
                    slot.send = Kind::Idle;
                    self.ring.ended();
                    self.sent(key, result)
                }
                _ => self.others(token, result, flags),
            },
            _ => self.others(token, result, flags),
        }
    }

    #[inline(never)]
    fn others(&mut self, token: Token, result: i32, flags: u32) -> Option<Completed<OwnedFd>> {
        let Token { kind, key } = token;
        let of_slot =
            !matches!(kind, Kind::Wake | Kind::Timeout | Kind::Cancel | Kind::SendZeroCopy);
        let known =
            if of_slot { self.known(key).is_some() } else { self.zero_copies.contains(key) };
        if !known && (of_slot || kind == Kind::SendZeroCopy) {
            return self.unknown(kind, result);
        }
        if let Err(violation) = self.check(token, flags) {
            self.fail(violation);
            return None;
        }
        let more = cqueue::more(flags);
        if kind == Kind::SendZeroCopy {
            return self.zero_copy_completed(key, result, flags);
        }
        if !more {
            self.ring.ended();
            if of_slot {
                *self.slot(key).in_flight_mut(op_of(kind)) = Kind::Idle;
            }
        }
        match kind {
            Kind::RecvInto => self.filled(key, result),
            Kind::RecvPoll => self.readable(key, result),
            Kind::RecvIntoPoll => self.readable_into(key, result),
            Kind::SendPoll => self.writable(key, result),
            Kind::Socket => {
                self.socket_made(key, result);
                None
            }
            Kind::Connect => {
                self.connect_ended(key, status(result));
                None
            }
            Kind::ConnectPoll => {
                self.connect_polled(key, result);
                None
            }
            Kind::Accept => self.accepted(key, result, more),
            Kind::AcceptPoll => self.acceptable(key, result),
            Kind::Hangup => self.hung_up(key, result),
            Kind::Close => self.closed(key),
            Kind::Wake => Some(self.woken()),
            Kind::Timeout => {
                self.ring.alarm.ended(key);
                None
            }
            Kind::Cancel => {
                self.ring.cancels -= 1;
                None
            }
            Kind::Recv | Kind::RecvFirst | Kind::Send | Kind::SendZeroCopy | Kind::Idle => None,
        }
    }

    /// Whether a completion can be, as far as that does not depend on its result.
    fn check(&self, Token { kind, key }: Token, flags: u32) -> Result<(), Violation> {
        let in_flight = match kind {
            Kind::Wake => self.wake_armed,
            Kind::Timeout => self.ring.alarm.in_flight > 0,
            Kind::Cancel => self.ring.cancels > 0,
            Kind::SendZeroCopy => true,
            Kind::Idle => false,
            _ => self.known(key).is_some_and(|slot| slot.in_flight(op_of(kind)) == kind),
        };
        let goes_on =
            kind == Kind::SendZeroCopy || kind == Kind::Accept && self.style.multishot_accept;
        match () {
            () if !in_flight => Err(NOT_IN_FLIGHT),
            () if cqueue::buffer_select(flags).is_some() => Err(PICKED),
            () if cqueue::notif(flags) && kind != Kind::SendZeroCopy => Err(NOTIFIED),
            () if cqueue::more(flags) && !goes_on => Err(GOES_ON),
            () => Ok(()),
        }
    }

    /// A completion for a key that nobody has any more. It ends nothing that is in flight.
    fn unknown(&mut self, kind: Kind, result: i32) -> Option<Completed<OwnedFd>> {
        if kind == Kind::Hangup && self.abandoned_watches > 0 {
            self.abandoned_watches -= 1;
            self.ring.ended();
            return None;
        }
        self.stats.unknown_completions += 1;
        if matches!(kind, Kind::Accept | Kind::Socket) {
            drop(descriptor(result));
        }
        None
    }

    fn woken(&mut self) -> Completed<OwnedFd> {
        self.wake_armed = false;
        self.inbox.reset();
        Completed::last(Key::NONE, Outcome::Woken)
    }
}
