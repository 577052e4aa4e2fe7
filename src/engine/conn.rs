//! The state of one connection and of one listener. Owns: the data, and the questions that can be answered from it alone. No
//! behaviour that needs the engine or a backend.

use crate::backend::{CloseHow, ConnectRequest, Op};
use crate::buf::{Fill, Lease, SendQueue};
use crate::completion::{CloseKind, CloseReason};
use crate::error::Errno;
use crate::id::Key;
use crate::mutant::{self, Mutant};
use crate::options::{ListenOptions, ReadMode, SocketOptions};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Where a connection is between its first and its last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Open,
    /// `close` was called: flush, send the FIN, discard input until the peer's FIN or a deadline.
    Closing,
    /// The end is decided: cancel what is in flight, then close the descriptor.
    Terminating,
    /// Closed and told; the kernel still reads payloads of zero-copy sends.
    Ghost,
}

/// Bits of [`Conn::flags`].
pub(super) mod flag {
    /// On the list of connections that want something started.
    pub(in crate::engine) const DIRTY: u16 = 1;
    /// The caller paused reads.
    pub(in crate::engine) const PAUSED: u16 = 1 << 1;
    /// The peer's FIN was seen.
    pub(in crate::engine) const READ_CLOSED: u16 = 1 << 2;
    /// Nothing more may be queued.
    pub(in crate::engine) const WRITE_SHUT: u16 = 1 << 3;
    pub(in crate::engine) const FIN_SENT: u16 = 1 << 4;
    /// Waits for a receive buffer.
    pub(in crate::engine) const PARKED: u16 = 1 << 5;
    /// The send queue reached its limit; `Drained` is owed.
    pub(in crate::engine) const FULL: u16 = 1 << 6;
    /// The close will be a reset.
    pub(in crate::engine) const RESET: u16 = 1 << 7;
    /// The engine closes when the peer does.
    pub(in crate::engine) const CLOSE_WITH_PEER: u16 = 1 << 8;
    /// `ReadClosed` is held back with the data before it, until reads are resumed.
    pub(in crate::engine) const EOF_HELD: u16 = 1 << 9;
    /// The connection was never told to the caller, and its end will not be either.
    pub(in crate::engine) const SILENT: u16 = 1 << 10;
    /// The receive in flight fills a caller's buffer.
    pub(in crate::engine) const FILLING: u16 = 1 << 11;
    /// Sending failed; data that came before the failure is still delivered.
    pub(in crate::engine) const WRITE_DEAD: u16 = 1 << 12;
    /// Zero-copy cannot pay (the peer is local), or was refused.
    pub(in crate::engine) const NO_ZERO_COPY: u16 = 1 << 13;
    /// The peer's address was looked at, to decide on zero-copy.
    pub(in crate::engine) const PEER_KNOWN: u16 = 1 << 14;
}

/// The bit of an operation in [`Conn::ops`].
fn op_bit(op: Op) -> u8 {
    1 << op as u8
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) tag: u64,
    pub(super) queue: Option<Box<SendQueue>>,
    pub(super) cold: Option<Box<Cold>>,
    /// The one deadline that matters in the present phase: connect, idle or linger.
    pub(super) timer: Option<Key>,
    /// When a byte last moved; kept only where there is an idle timeout.
    pub(super) active_at: u64,
    pub(super) flags: u16,
    pub(super) phase: Phase,
    /// Operations in flight, and those of them that were advised to end.
    pub(super) ops: u8,
    pub(super) cancelled: u8,
    /// Completions with data in turn `turn`, against the budget.
    pub(super) delivered: u16,
    pub(super) turn: u32,
    /// Completions of this connection that wait for the next poll.
    pub(super) deferred: u32,
}

/// What most connections do not have, most of the time.
#[derive(Debug, Default)]
pub(super) struct Cold {
    pub(super) request: Option<ConnectRequest>,
    pub(super) idle_ns: Option<u64>,
    pub(super) reason: Option<(CloseKind, Option<Errno>)>,
    pub(super) stash: VecDeque<Lease>,
    pub(super) fill: Option<Fill>,
}

impl Cold {
    fn is_vacant(&self) -> bool {
        self.request.is_none()
            && self.idle_ns.is_none()
            && self.reason.is_none()
            && self.stash.is_empty()
            && self.fill.is_none()
    }
}

impl Conn {
    pub(super) fn new(phase: Phase, tag: u64, options: &SocketOptions, default_idle: Option<Duration>) -> Conn {
        let mut flags = 0;
        if options.read_mode == ReadMode::Paused {
            flags |= flag::PAUSED;
        }
        if !options.half_open {
            flags |= flag::CLOSE_WITH_PEER;
        }
        let idle_ns =
            options.idle_timeout.or(default_idle).map(|idle| u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX));
        let mut conn = Conn {
            tag,
            queue: None,
            cold: None,
            timer: None,
            active_at: 0,
            flags,
            phase,
            ops: 0,
            cancelled: 0,
            delivered: 0,
            turn: 0,
            deferred: 0,
        };
        if idle_ns.is_some() {
            conn.cold().idle_ns = idle_ns;
        }
        conn
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    pub(super) fn unset(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    pub(super) fn in_flight(&self, op: Op) -> bool {
        self.ops & op_bit(op) != 0
    }

    pub(super) fn started(&mut self, op: Op) {
        self.ops |= op_bit(op);
        self.cancelled &= !op_bit(op);
    }

    pub(super) fn ended(&mut self, op: Op) {
        self.ops &= !op_bit(op);
        self.cancelled &= !op_bit(op);
    }

    pub(super) fn advised_to_end(&mut self, op: Op) {
        self.cancelled |= op_bit(op);
    }

    /// True if the operation is in flight and was not yet advised to end.
    pub(super) fn cancellable(&self, op: Op) -> bool {
        self.ops & !self.cancelled & op_bit(op) != 0
    }

    pub(super) fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Gives the rare part back when nothing is in it.
    pub(super) fn shed_cold(&mut self) {
        if self.cold.as_ref().is_some_and(|cold| cold.is_vacant()) {
            self.cold = None;
        }
    }

    pub(super) fn fill(&mut self) -> Option<&mut Fill> {
        self.cold.as_mut()?.fill.as_mut()
    }

    pub(super) fn is_filling(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.fill.is_some())
    }

    pub(super) fn has_stash(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.stash.is_empty())
    }

    /// Nothing stands between what arrives and the caller: the common case.
    #[inline]
    pub(super) fn takes_data_as_it_comes(&self) -> bool {
        let plain = |cold: &Cold| cold.fill.is_none() && cold.stash.is_empty();
        let held_back = self.has(flag::PAUSED) || self.deferred > 0;
        self.phase == Phase::Open && !held_back && self.cold.as_deref().is_none_or(plain)
    }

    /// Counts a completion with data against the budget of a turn; false, and not counted, if that is used up.
    #[inline]
    pub(super) fn within_budget(&mut self, turn: u32, budget: u16) -> bool {
        if self.turn != turn {
            (self.turn, self.delivered) = (turn, 0);
        }
        let within = self.delivered < budget;
        self.delivered += u16::from(within);
        within
    }

    /// A receive is in flight as it should be, and nothing of a close or of the caller's wishes is to be seen to.
    #[inline]
    pub(super) fn is_steady(&self) -> bool {
        const RARE: u16 = flag::PAUSED
            | flag::READ_CLOSED
            | flag::WRITE_SHUT
            | flag::FIN_SENT
            | flag::PARKED
            | flag::EOF_HELD
            | flag::FILLING;
        let rare = self.has(RARE) || !self.cancellable(Op::Recv);
        !rare && self.takes_data_as_it_comes()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.bytes())
    }

    pub(super) fn queue_is_empty(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.is_empty())
    }

    /// True while the kernel may read payloads of this connection without an operation in flight.
    pub(super) fn owes_notices(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.notices() > 0)
    }

    /// Data may still be delivered to the caller.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// A receive should be in flight.
    pub(super) fn wants_recv(&self) -> bool {
        if self.has(flag::READ_CLOSED | flag::PARKED) {
            return false;
        }
        match self.phase {
            Phase::Open => self.is_filling() || !self.has(flag::PAUSED),
            Phase::Closing => true,
            _ => false,
        }
    }

    /// Remembers why the connection ends; the first reason stands. Without one it was closed here.
    pub(super) fn set_reason(&mut self, kind: CloseKind, errno: Option<Errno>) {
        self.cold().reason.get_or_insert((kind, errno));
    }

    /// Remembers a reason that overrules what was thought before.
    pub(super) fn replace_reason(&mut self, kind: CloseKind, errno: Option<Errno>) {
        self.cold().reason = Some((kind, errno));
    }

    pub(super) fn close_how(&self) -> CloseHow {
        // A FIN would make a stream that is cut short look complete.
        if self.has(flag::RESET) || self.queued_bytes() > 0 { CloseHow::Reset } else { CloseHow::Quiet }
    }

    pub(super) fn close_reason(&self) -> CloseReason {
        let (kind, errno) = self.cold.as_ref().and_then(|cold| cold.reason).unwrap_or((CloseKind::Local, None));
        let unsent_bytes = if mutant::is(Mutant::UnsentForgotten) { 0 } else { self.queued_bytes() as u64 };
        CloseReason { kind, errno, unsent_bytes }
    }
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) options: Rc<ListenOptions>,
    /// An accept is in flight; it was advised to end.
    pub(super) accepting: bool,
    pub(super) cancelled: bool,
    pub(super) dirty: bool,
    /// Suspended, and told so.
    pub(super) paused: bool,
    /// Not to be armed before the timer fires or a descriptor closes.
    pub(super) holding: bool,
    pub(super) closing: bool,
    pub(super) close_started: bool,
    pub(super) errno: Option<Errno>,
    pub(super) timer: Option<Key>,
    /// How long the next hold lasts.
    pub(super) hold_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Option<Conn>>() <= 72, "{} bytes", size_of::<Option<Conn>>());
    }
}
