//! The state of one connection. Owns: its fields, and the predicates that depend on them alone.
//! Invariant: a cancel is requested only for an operation in flight. Must not know the engine or a
//! backend.

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

/// The phase of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Open,
    /// `close` was called: flush, send the FIN, discard input until the peer's FIN or a deadline.
    Closing,
    /// Cancel what is in flight, then close the descriptor.
    Terminating,
}

/// Bits of [`Conn::flags`].
pub(super) mod flag {
    /// Staged: on the list of connections that have something to submit.
    pub(in crate::engine) const STAGED: u16 = 1;
    /// The caller paused reads.
    pub(in crate::engine) const PAUSED: u16 = 1 << 1;
    /// The peer's FIN was received, or a receive failed.
    pub(in crate::engine) const READ_CLOSED: u16 = 1 << 2;
    /// The send queue takes no more payloads; the FIN follows the last one.
    pub(in crate::engine) const WRITE_SHUT: u16 = 1 << 3;
    pub(in crate::engine) const FIN_SENT: u16 = 1 << 4;
    /// Parked: waits for a receive buffer.
    pub(in crate::engine) const PARKED: u16 = 1 << 5;
    /// The send queue reached its high watermark; `Drained` follows at the low one.
    pub(in crate::engine) const FULL: u16 = 1 << 6;
    /// The close will be a reset.
    pub(in crate::engine) const RESET: u16 = 1 << 7;
    /// The engine closes the connection when the peer's FIN is received.
    pub(in crate::engine) const CLOSE_WITH_PEER: u16 = 1 << 8;
    /// `ReadClosed` is held, with the data before it, until reads are resumed.
    pub(in crate::engine) const EOF_HELD: u16 = 1 << 9;
    /// `HungUp` was emitted.
    pub(in crate::engine) const HANGUP_REPORTED: u16 = 1 << 10;
    /// The receive in flight is a `RecvInto`, which owns the caller's buffer.
    pub(in crate::engine) const RECV_INTO: u16 = 1 << 11;
    /// A send failed. Data received before the failure is still delivered.
    pub(in crate::engine) const WRITE_FAILED: u16 = 1 << 12;
    /// Zero-copy is off: the peer is on this machine, or the kernel refused it.
    pub(in crate::engine) const NO_ZERO_COPY: u16 = 1 << 13;
    /// It was checked whether the peer is on this machine, which decides on zero-copy.
    pub(in crate::engine) const PEER_ADDR_CHECKED: u16 = 1 << 14;
}

/// Two bit sets over [`OpKind`]: the operations in flight, and those of them with a cancel
/// requested.
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
    /// The timer of the phase's deadline: connect, idle, linger or `fin_wait`.
    pub(super) timer: Option<Key>,
    pub(super) quota: Quota,
    flags: u16,
    pub(super) phase: Phase,
    ops: Ops,
}

/// The fields that most connections do not use, allocated on demand.
#[derive(Debug, Default)]
struct Cold {
    /// A connect that is not started yet.
    connect: Option<Box<Connect>>,
    idle: Option<IdleTimeout>,
    reason: Option<(CloseKind, Option<Errno>)>,
    /// Held data: received while reads were paused.
    held: VecDeque<Lease>,
    /// The caller's buffer, unless a receive in flight owns it.
    recv_buf: Option<Box<RecvBuf>>,
}

/// An idle timeout.
#[derive(Clone, Copy, Debug)]
struct IdleTimeout {
    timeout_ns: u64,
    /// The time at which bytes were last received or sent.
    active_at_ns: u64,
}

impl Cold {
    fn is_empty(&self) -> bool {
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
            let timeout_ns = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
            conn.cold().idle = Some(IdleTimeout { timeout_ns, active_at_ns: 0 });
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

    /// No operation is in flight but a watch for a hang-up.
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

    /// Records that a cancel is requested. False if the operation is not in flight, or a cancel was
    /// requested before.
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

    /// The rarely used fields, allocated if need be.
    #[inline]
    fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Stores a connect that is not started yet.
    #[inline]
    pub(super) fn put_connect(&mut self, connect: Box<Connect>) {
        self.cold().connect = Some(connect);
    }

    #[inline]
    pub(super) fn take_connect(&mut self) -> Option<Box<Connect>> {
        self.cold.as_mut()?.connect.take()
    }

    /// Appends received data to the held data.
    #[inline]
    pub(super) fn hold(&mut self, lease: Lease) {
        self.cold().held.push_back(lease);
    }

    /// Takes all held data.
    #[inline]
    pub(super) fn take_held(&mut self) -> VecDeque<Lease> {
        self.cold.as_mut().map_or_else(VecDeque::new, |cold| std::mem::take(&mut cold.held))
    }

    /// Stores the caller's buffer. The allocation stays when the buffer is taken out: the next
    /// receive into a buffer then allocates nothing.
    #[inline]
    pub(super) fn put_recv_buf(&mut self, recv_buf: Box<RecvBuf>) {
        self.cold().recv_buf = Some(recv_buf);
    }

    #[inline]
    pub(super) fn take_recv_buf(&mut self) -> Option<Box<RecvBuf>> {
        self.cold.as_mut()?.recv_buf.take()
    }

    /// Frees the rarely used fields if all are empty.
    pub(super) fn free_empty_cold(&mut self) {
        if self.cold.as_ref().is_some_and(|cold| cold.is_empty()) {
            self.cold = None;
        }
    }

    /// Restarts the idle timeout: bytes were received or sent.
    #[inline]
    pub(super) fn note_activity(&mut self, now: u64) {
        if let Some(cold) = &mut self.cold
            && let Some(idle) = &mut cold.idle
        {
            idle.active_at_ns = now;
        }
    }

    /// The time at which the connection has been idle for its timeout.
    pub(super) fn idle_deadline(&self) -> Option<u64> {
        let idle = self.cold.as_ref()?.idle?;
        Some(idle.active_at_ns.saturating_add(idle.timeout_ns))
    }

    /// The caller's buffer, unless a receive in flight owns it.
    #[inline]
    pub(super) fn recv_buf(&mut self) -> Option<&mut Box<RecvBuf>> {
        self.cold.as_mut()?.recv_buf.as_mut()
    }

    /// There is a caller's buffer to fill.
    #[inline]
    pub(super) fn is_receiving_into(&self) -> bool {
        self.has(flag::RECV_INTO) || self.cold.as_ref().is_some_and(|cold| cold.recv_buf.is_some())
    }

    #[inline]
    pub(super) fn has_held(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.held.is_empty())
    }

    /// Received data can be delivered at once: reads are not paused, there is no buffer to fill,
    /// and no earlier event or data waits. The common case.
    #[inline]
    pub(super) fn delivers_directly(&self) -> bool {
        let direct = |cold: &Cold| cold.recv_buf.is_none() && cold.held.is_empty();
        let waits = self.has(flag::PAUSED) || self.quota.has_deferred();
        self.phase == Phase::Open && !waits && self.cold.as_deref().is_none_or(direct)
    }

    /// Only sends have to be serviced: a receive into the pool is in flight, received data is
    /// delivered directly, and no shutdown or close has begun. The common case.
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
        !rare && self.delivers_directly()
    }

    /// Received data is delivered, not discarded.
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

    /// Sets the reason of the end, unless one is set. The default is [`CloseKind::Local`].
    pub(super) fn set_reason(&mut self, kind: CloseKind, errno: Option<Errno>) {
        self.cold().reason.get_or_insert((kind, errno));
    }

    /// Sets the reason of the end, and replaces an earlier one.
    pub(super) fn replace_reason(&mut self, kind: CloseKind, errno: Option<Errno>) {
        self.cold().reason = Some((kind, errno));
    }

    pub(super) fn reason(&self) -> Option<CloseKind> {
        self.cold.as_ref()?.reason.map(|(kind, _)| kind)
    }

    pub(super) fn close_mode(&self) -> CloseMode {
        // With unsent bytes a FIN would make the truncated stream look complete.
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
