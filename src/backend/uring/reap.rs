//! From CQEs to completed operations. Owns: the mapping of a CQE to its operation, and the checks
//! that do not depend on its result. Invariant: a CQE reaches the code of its operation only if
//! that operation is in flight in its slot. Must not know what a result means: the file of the
//! operation does.

use super::Uring;
use super::op::{op_of, status};
use super::sqe::owned_fd;
use super::token::{Kind, Token, unpack};
use crate::backend::{Completed, Outcome};
use crate::error::Violation;
use crate::id::Key;
use io_uring::cqueue;
use std::os::fd::OwnedFd;

const NOT_IN_FLIGHT: Violation = Violation("a completion for an operation that is not in flight");
const UNEXPECTED_BUFFER: Violation =
    Violation("a completion names a provided buffer, but its operation selects none");
const UNEXPECTED_NOTIF: Violation =
    Violation("F_NOTIF on an operation that is not a zero-copy send");
pub(super) const UNEXPECTED_MORE: Violation =
    Violation("F_MORE on an operation that completes once");
/// IORING_CQE_F_BUFFER, F_MORE and F_NOTIF: the only CQE of an operation without a provided buffer
/// has none of them.
const SPECIAL: u32 = 1 | 1 << 1 | 1 << 3;

impl Uring {
    /// The completed operation that a CQE reports; `None` if the engine need not know.
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
                // The common cases: a receive or a send that is in flight.
                Kind::Recv | Kind::RecvFirst
                    if slot.recv == token.kind && !cqueue::notif(flags) =>
                {
                    if !more {
                        slot.recv = Kind::Idle;
                        self.ring.op_completed();
                    }
                    self.recv_completed(key, token.kind, (result, flags), more)
                }
                Kind::Send if slot.send == Kind::Send && flags & SPECIAL == 0 => {
                    slot.send = Kind::Idle;
                    self.ring.op_completed();
                    self.send_completed(key, result)
                }
                _ => self.translate_rest(token, result, flags),
            },
            _ => self.translate_rest(token, result, flags),
        }
    }

    #[inline(never)]
    fn translate_rest(
        &mut self,
        token: Token,
        result: i32,
        flags: u32,
    ) -> Option<Completed<OwnedFd>> {
        let Token { kind, key } = token;
        let of_slot =
            !matches!(kind, Kind::Wake | Kind::Timeout | Kind::Cancel | Kind::SendZeroCopy);
        let is_open = if of_slot {
            self.find_slot(key).is_some()
        } else {
            self.zero_copy_shares.contains(key)
        };
        if !is_open && (of_slot || kind == Kind::SendZeroCopy) {
            return self.stale_completion(kind, result);
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
            self.ring.op_completed();
            if of_slot {
                *self.slot(key).in_flight_mut(op_of(kind)) = Kind::Idle;
            }
        }
        match kind {
            Kind::RecvInto => self.recv_into_completed(key, result),
            Kind::RecvPoll => self.recv_polled(key, result),
            Kind::RecvIntoPoll => self.recv_into_polled(key, result),
            Kind::SendPoll => self.send_polled(key, result),
            Kind::Socket => {
                self.socket_completed(key, result);
                None
            }
            Kind::Connect => {
                self.connect_completed(key, status(result));
                None
            }
            Kind::ConnectPoll => {
                self.connect_polled(key, result);
                None
            }
            Kind::Accept => self.accept_completed(key, result, more),
            Kind::AcceptPoll => self.accept_polled(key, result),
            Kind::Hangup => self.hangup_completed(key, result),
            Kind::Close => self.close_completed(key),
            Kind::Wake => Some(self.wake_completed()),
            Kind::Timeout => {
                self.ring.wait_timeout.completed(key);
                None
            }
            Kind::Cancel => {
                self.ring.cancels -= 1;
                None
            }
            Kind::Recv | Kind::RecvFirst | Kind::Send | Kind::SendZeroCopy | Kind::Idle => None,
        }
    }

    /// Checks a CQE, except for its result.
    fn check(&self, Token { kind, key }: Token, flags: u32) -> Result<(), Violation> {
        let in_flight = match kind {
            Kind::Wake => self.wake_armed,
            Kind::Timeout => self.ring.wait_timeout.in_flight > 0,
            Kind::Cancel => self.ring.cancels > 0,
            Kind::SendZeroCopy => true,
            Kind::Idle => false,
            _ => self.find_slot(key).is_some_and(|slot| slot.in_flight(op_of(kind)) == kind),
        };
        let may_have_more =
            kind == Kind::SendZeroCopy || kind == Kind::Accept && self.features.multishot_accept;
        match () {
            () if !in_flight => Err(NOT_IN_FLIGHT),
            () if cqueue::buffer_select(flags).is_some() => Err(UNEXPECTED_BUFFER),
            () if cqueue::notif(flags) && kind != Kind::SendZeroCopy => Err(UNEXPECTED_NOTIF),
            () if cqueue::more(flags) && !may_have_more => Err(UNEXPECTED_MORE),
            () => Ok(()),
        }
    }

    /// A CQE for a stale key. Only the poll of a released connection can still be in flight.
    fn stale_completion(&mut self, kind: Kind, result: i32) -> Option<Completed<OwnedFd>> {
        if kind == Kind::Hangup && self.abandoned_watches > 0 {
            self.abandoned_watches -= 1;
            self.ring.op_completed();
            return None;
        }
        self.stats.unknown_completions += 1;
        if matches!(kind, Kind::Accept | Kind::Socket) {
            drop(owned_fd(result));
        }
        None
    }

    fn wake_completed(&mut self) -> Completed<OwnedFd> {
        self.wake_armed = false;
        self.waker_shared.reset();
        Completed::last(Key::NONE, Outcome::Woken)
    }
}
