//! The state of one connection. Owns: the data, and the questions that can be answered from it
//! alone. No behaviour that needs the engine or a backend.

use super::deliver::Quota;
use super::send::SendSide;
use crate::backend::{CloseMode, Connect, OpKind};
use crate::buf::{Lease, RecvBuf};
use crate::completion::{CloseKind, CloseReason};
use crate::error::Errno;
use crate::id::Key;
use crate::options::{ReadMode, SocketOptions};
use std::collections::VecDeque;
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
    /// `HungUp` was told.
    pub(in crate::engine) const HANGUP_TOLD: u16 = 1 << 10;
    /// The receive in flight is one into the caller's buffer, and has it.
    pub(in crate::engine) const RECV_INTO: u16 = 1 << 11;
    /// Sending failed; data that came before the failure is still delivered.
    pub(in crate::engine) const WRITE_DEAD: u16 = 1 << 12;
    /// Zero-copy cannot pay (the peer is local), or was refused.
    pub(in crate::engine) const NO_ZERO_COPY: u16 = 1 << 13;
    /// The peer's address was looked at, to decide on zero-copy.
    pub(in crate::engine) const PEER_KNOWN: u16 = 1 << 14;
}

/// The operations in flight, and those of them that were advised to end. Invariant: only what is in
/// flight is advised.
#[derive(Clone, Copy, Debug, Default)]
struct Ops {
    in_flight: u8,
    cancelled: u8,
}

fn bit(kind: OpKind) -> u8 {
    1 << kind as u8
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) tag: u64,
    pub(super) send: SendSide,
    cold: Option<Box<Cold>>,
    /// The one deadline that matters in the present phase: connect, idle or linger.
    pub(super) timer: Option<Key>,
    pub(super) quota: Quota,
    flags: u16,
    pub(super) phase: Phase,
    ops: Ops,
}

/// What most connections do not have, most of the time.
#[derive(Debug, Default)]
struct Cold {
    /// A connect that was not started yet.
    connect: Option<Box<Connect>>,
    idle: Option<Idle>,
    reason: Option<(CloseKind, Option<Errno>)>,
    /// Received data that waits until reads are resumed.
    held: VecDeque<Lease>,
    /// The caller's buffer, unless a receive in flight has it.
    recv_buf: Option<Box<RecvBuf>>,
}

/// An idle timeout.
#[derive(Clone, Copy, Debug)]
struct Idle {
    after_ns: u64,
    /// When a byte last moved.
    active_at: u64,
}

impl Cold {
    fn is_vacant(&self) -> bool {
        self.connect.is_none()
            && self.idle.is_none()
            && self.reason.is_none()
            && self.held.is_empty()
            && self.recv_buf.is_none()
    }
}

impl Conn {
    pub(super) fn new(
        phase: Phase,
        tag: u64,
        options: &SocketOptions,
        default_idle: Option<Duration>,
    ) -> Conn {
        let mut flags = 0;
        if options.read_mode == ReadMode::Paused {
            flags |= flag::PAUSED;
        }
        if !options.half_open {
            flags |= flag::CLOSE_WITH_PEER;
        }
        let mut conn = Conn {
            tag,
            send: SendSide::default(),
            cold: None,
            timer: None,
            quota: Quota::default(),
            flags,
            phase,
            ops: Ops::default(),
        };
        if let Some(idle) = options.idle_timeout.or(default_idle) {
            let after_ns = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
            conn.cold().idle = Some(Idle { after_ns, active_at: 0 });
        }
        conn
    }

    #[inline]
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    #[inline]
    pub(super) fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    #[inline]
    pub(super) fn unset(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    #[inline]
    pub(super) fn in_flight(&self, kind: OpKind) -> bool {
        self.ops.in_flight & bit(kind) != 0
    }

    pub(super) fn nothing_in_flight(&self) -> bool {
        self.ops.in_flight == 0
    }

    /// Nothing is in flight that reads, writes or may end the connection.
    pub(super) fn is_quiet(&self) -> bool {
        self.ops.in_flight & !bit(OpKind::Hangup) == 0
    }

    #[inline]
    pub(super) fn started(&mut self, kind: OpKind) {
        self.ops.in_flight |= bit(kind);
        self.ops.cancelled &= !bit(kind);
    }

    #[inline]
    pub(super) fn ended(&mut self, kind: OpKind) {
        self.ops.in_flight &= !bit(kind);
        self.ops.cancelled &= !bit(kind);
    }

    /// Notes a cancel. False if the operation is not in flight, or was advised to end before.
    #[inline]
    pub(super) fn begin_cancel(&mut self, kind: OpKind) -> bool {
        let cancellable = self.cancellable(kind);
        if cancellable {
            self.ops.cancelled |= bit(kind);
        }
        cancellable
    }

    #[inline]
    fn cancellable(&self, kind: OpKind) -> bool {
        self.ops.in_flight & !self.ops.cancelled & bit(kind) != 0
    }

    #[cfg(feature = "sim")]
    pub(super) fn cancels_agree(&self) -> bool {
        self.ops.cancelled & !self.ops.in_flight == 0
    }

    /// The rare part, made if it is not there.
    #[inline]
    fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Keeps a connect that was not started yet.
    #[inline]
    pub(super) fn put_connect(&mut self, connect: Box<Connect>) {
        self.cold().connect = Some(connect);
    }

    #[inline]
    pub(super) fn take_connect(&mut self) -> Option<Box<Connect>> {
        self.cold.as_mut()?.connect.take()
    }

    /// Holds received data back, behind what is held already.
    #[inline]
    pub(super) fn hold(&mut self, lease: Lease) {
        self.cold().held.push_back(lease);
    }

    /// Takes all data that is held back.
    #[inline]
    pub(super) fn take_held(&mut self) -> VecDeque<Lease> {
        self.cold.as_mut().map_or_else(VecDeque::new, |cold| std::mem::take(&mut cold.held))
    }

    /// Keeps the caller's buffer. The rare part stays when it is taken: who receives into a buffer
    /// once will do so again, and that must not allocate.
    #[inline]
    pub(super) fn put_recv_buf(&mut self, recv_buf: Box<RecvBuf>) {
        self.cold().recv_buf = Some(recv_buf);
    }

    #[inline]
    pub(super) fn take_recv_buf(&mut self) -> Option<Box<RecvBuf>> {
        self.cold.as_mut()?.recv_buf.take()
    }

    /// Gives the rare part back when nothing is in it.
    pub(super) fn shed_cold(&mut self) {
        if self.cold.as_ref().is_some_and(|cold| cold.is_vacant()) {
            self.cold = None;
        }
    }

    /// A byte moved.
    #[inline]
    pub(super) fn note_activity(&mut self, now: u64) {
        if let Some(cold) = &mut self.cold
            && let Some(idle) = &mut cold.idle
        {
            idle.active_at = now;
        }
    }

    /// When the idle timeout ends the connection, if no byte moves until then.
    pub(super) fn idle_until(&self) -> Option<u64> {
        let idle = self.cold.as_ref()?.idle?;
        Some(idle.active_at.saturating_add(idle.after_ns))
    }

    /// The caller's buffer, unless a receive in flight has it.
    #[inline]
    pub(super) fn recv_buf(&mut self) -> Option<&mut Box<RecvBuf>> {
        self.cold.as_mut()?.recv_buf.as_mut()
    }

    /// A caller's buffer is being filled.
    #[inline]
    pub(super) fn is_receiving_into(&self) -> bool {
        self.has(flag::RECV_INTO) || self.cold.as_ref().is_some_and(|cold| cold.recv_buf.is_some())
    }

    #[inline]
    pub(super) fn has_held(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.held.is_empty())
    }

    /// Nothing stands between what arrives and the caller: the common case.
    #[inline]
    pub(super) fn takes_data_as_it_comes(&self) -> bool {
        let plain = |cold: &Cold| cold.recv_buf.is_none() && cold.held.is_empty();
        let waits = self.has(flag::PAUSED) || self.quota.has_deferred();
        self.phase == Phase::Open && !waits && self.cold.as_deref().is_none_or(plain)
    }

    /// A receive is in flight as it should be, and nothing of a close or of the caller's wishes is
    /// left to do.
    #[inline]
    pub(super) fn is_steady(&self) -> bool {
        const RARE: u16 = flag::PAUSED
            | flag::READ_CLOSED
            | flag::WRITE_SHUT
            | flag::FIN_SENT
            | flag::PARKED
            | flag::EOF_HELD
            | flag::RECV_INTO;
        let rare = self.has(RARE) || !self.cancellable(OpKind::Recv);
        !rare && self.takes_data_as_it_comes()
    }

    /// Data may still be delivered to the caller.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// A receive should be in flight.
    #[inline]
    pub(super) fn wants_recv(&self) -> bool {
        if self.has(flag::READ_CLOSED | flag::PARKED) {
            return false;
        }
        match self.phase {
            Phase::Open => self.is_receiving_into() || !self.has(flag::PAUSED),
            Phase::Closing => true,
            Phase::Connecting | Phase::Terminating => false,
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

    pub(super) fn reason(&self) -> Option<CloseKind> {
        self.cold.as_ref()?.reason.map(|(kind, _)| kind)
    }

    pub(super) fn close_mode(&self) -> CloseMode {
        // A FIN would make a stream that is cut short look complete.
        if self.has(flag::RESET) || self.send.bytes() > 0 {
            CloseMode::Reset
        } else {
            CloseMode::Orderly
        }
    }

    pub(super) fn close_reason(&self) -> CloseReason {
        let (kind, errno) =
            self.cold.as_ref().and_then(|cold| cold.reason).unwrap_or((CloseKind::Local, None));
        CloseReason { kind, errno, unsent_bytes: self.send.bytes() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        assert_eq!(size_of::<Conn>(), 56);
    }
}
