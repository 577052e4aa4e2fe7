//! Sending. Owns: what may be queued, when a send is started, and what its result means. Invariant: one send in flight per
//! connection; the next one takes all that was queued meanwhile.

use super::Engine;
use super::conn::{Conn, Phase, flag};
use super::core::Core;
use crate::backend::{Backend, Op, Outcome, QueueFull};
use crate::buf::{Disposal, Payload};
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error, SendError, WriteError};
use crate::id::{ConnId, Key};
use crate::mutant::{self, Mutant};

/// Zero-copy sends stop for a while when this much waits for notifications.
const HELD_BYTES_MAX: usize = 8 << 20;

impl Engine {
    /// Queues a payload for sending, without a copy. It leaves with the next [`Engine::poll`], together with all else that
    /// is queued for the connection, and behind the connect if that is still under way. A payload of no bytes is fine,
    /// and puts nothing on the wire.
    ///
    /// # Errors
    /// The payload comes back: [`SendError::Full`] at the high watermark, [`SendError::Closed`] when the write side is shut,
    /// [`SendError::Stale`], [`SendError::Forked`].
    #[inline]
    pub fn send(&mut self, id: ConnId, payload: impl Into<Payload>) -> Result<(), SendError> {
        self.send_maybe_tagged(id, payload.into(), None)
    }

    /// As [`Engine::send`], and [`Event::Sent`] with the tag tells when the kernel has taken the last byte of it.
    ///
    /// # Errors
    /// As [`Engine::send`].
    pub fn send_tagged(&mut self, id: ConnId, payload: impl Into<Payload>, tag: u64) -> Result<(), SendError> {
        self.send_maybe_tagged(id, payload.into(), Some(tag))
    }

    #[inline]
    fn send_maybe_tagged(&mut self, id: ConnId, payload: Payload, tag: Option<u64>) -> Result<(), SendError> {
        // In a failed engine every id is stale.
        if self.is_child() {
            return Err(SendError::Forked(payload));
        }
        self.core.send(id.0, payload, tag)
    }

    /// Copies a small message into the output buffer of a connection. Many small writes leave as one.
    ///
    /// # Errors
    /// As [`Engine::send`]. All of `bytes` is taken, or nothing.
    pub fn write(&mut self, id: ConnId, bytes: &[u8]) -> Result<(), WriteError> {
        if self.is_child() {
            return Err(WriteError::Forked);
        }
        self.core.write(id.0, bytes)
    }

    /// Sends the FIN when all that is queued has left. Reading goes on; the connection ends when the peer's FIN comes too.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn shutdown_write(&mut self, id: ConnId) -> Result<(), Error> {
        let core = self.own()?;
        core.conn(id.0)?.set(flag::WRITE_SHUT);
        core.mark_dirty(id.0);
        Ok(())
    }

    /// Bytes queued for sending that the kernel has not taken yet.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn queued_bytes(&self, id: ConnId) -> Result<usize, Error> {
        Ok(self.look(id)?.queued_bytes())
    }
}

/// Why nothing more is queued.
enum Refusal {
    Stale,
    Closed,
    Full,
}

impl Conn {
    /// At the limit `Drained` is owed.
    #[inline]
    fn note_full(&mut self, high: usize) {
        if self.queued_bytes() >= high {
            self.set(flag::FULL);
        }
    }

    fn may_queue(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Connecting) && !self.has(flag::WRITE_SHUT | flag::WRITE_DEAD)
    }
}

impl Core {
    /// A connection whose queue takes something more, with that queue made, and put on the list of those whose next turn will see
    /// to them.
    #[inline(always)]
    fn welcome(&mut self, key: Key) -> Result<(&mut Conn, &mut Disposal), Refusal> {
        let (high, entries_max) = (self.config.send_high_watermark, self.config.send_entries_max);
        let conn = self.conns.get_mut(key).filter(|conn| conn.phase != Phase::Ghost).ok_or(Refusal::Stale)?;
        if !conn.may_queue() {
            return Err(Refusal::Closed);
        }
        let queue = Core::queue_of(conn, &mut self.spare_queues);
        if queue.bytes() >= high || queue.entries() >= entries_max {
            conn.set(flag::FULL);
            self.stats.sends_refused += 1;
            return Err(Refusal::Full);
        }
        self.staged.mark(conn, key);
        Ok((conn, &mut self.disposal))
    }

    #[inline]
    pub(super) fn send(&mut self, key: Key, payload: Payload, tag: Option<u64>) -> Result<(), SendError> {
        let high = self.config.send_high_watermark;
        match self.welcome(key) {
            Ok((conn, _)) => {
                conn.queue.as_mut().expect("made in welcome").push(payload, tag);
                conn.note_full(high);
                Ok(())
            }
            Err(Refusal::Stale) => Err(SendError::Stale(payload)),
            Err(Refusal::Closed) => Err(SendError::Closed(payload)),
            Err(Refusal::Full) => Err(SendError::Full(payload)),
        }
    }

    #[inline]
    fn write(&mut self, key: Key, bytes: &[u8]) -> Result<(), WriteError> {
        let high = self.config.send_high_watermark;
        match self.welcome(key) {
            Ok(_) if bytes.is_empty() => Ok(()),
            Ok((conn, disposal)) => {
                conn.queue.as_mut().expect("made in welcome").write(bytes, disposal);
                conn.note_full(high);
                Ok(())
            }
            Err(Refusal::Stale) => Err(WriteError::Stale),
            Err(Refusal::Closed) => Err(WriteError::Closed),
            Err(Refusal::Full) => Err(WriteError::Full),
        }
    }

    /// Starts a send if there is something to send, and the FIN if it is time.
    pub(super) fn service_send<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), QueueFull> {
        let conn = self.conns.get_mut(key).expect("serviced while live");
        if conn.in_flight(Op::Send) {
            if mutant::is(Mutant::EarlyFin) && conn.has(flag::WRITE_SHUT) && !conn.has(flag::FIN_SENT) {
                conn.set(flag::FIN_SENT);
                backend.shutdown_write(key);
            }
            return Ok(());
        }
        if let Some(queue) = conn.queue.as_mut().filter(|queue| !queue.is_empty() && queue.front_len() == 0) {
            queue.skip_empty(&mut self.disposal, |tag| self.sent_tags.push(tag));
            self.tell_sent(key, out);
            self.tell_drained(key, out);
        }
        let conn = self.conns.get_mut(key).expect("still there");
        if conn.has(flag::WRITE_DEAD) {
            // Only data that came before the failure is still waited for; if that is not wanted, this is the end.
            if conn.is_open() && conn.has(flag::PAUSED) && !conn.is_filling() {
                self.end_phase(key);
            }
            return Ok(());
        }
        if !conn.queue_is_empty() {
            let large = self.config.zero_copy_threshold.is_some_and(|least| {
                conn.queue.as_ref().is_some_and(|queue| queue.front_len() >= least) && backend.can_zero_copy()
            });
            let zero_copy = large && self.wants_zero_copy(backend, key);
            let conn = self.conns.get_mut(key).expect("still there");
            let queue = conn.queue.as_mut().expect("not empty");
            let taken = backend.start_send(key, queue, zero_copy)?;
            if zero_copy {
                self.stats.zero_copy_sends += 1;
            }
            match taken {
                Some(taken) => self.sent(key, taken, None, out),
                None => conn.started(Op::Send),
            }
            return Ok(());
        }
        if conn.has(flag::WRITE_SHUT) && !conn.has(flag::FIN_SENT | flag::WRITE_DEAD) {
            conn.set(flag::FIN_SENT);
            // A descriptor that is closed at once sends its FIN with that.
            if conn.phase != Phase::Closing || !self.config.fin_wait.is_zero() {
                backend.shutdown_write(key);
            }
        }
        self.recycle_queue(key);
        Ok(())
    }

    /// For a payload at the threshold.
    fn wants_zero_copy<B: Backend>(&mut self, backend: &B, key: Key) -> bool {
        let anywhere = self.config.zero_copy_anywhere;
        let conn = self.conns.get_mut(key).expect("still there");
        let queue = conn.queue.as_ref().expect("not empty");
        if queue.held_bytes() > HELD_BYTES_MAX {
            return false;
        }
        if !conn.has(flag::PEER_KNOWN) {
            conn.set(flag::PEER_KNOWN);
            if !anywhere && backend.peer_addr(key).map_or(true, |addr| addr.is_local()) {
                conn.set(flag::NO_ZERO_COPY);
            }
        }
        !conn.has(flag::NO_ZERO_COPY)
    }

    pub(super) fn on_send<S>(&mut self, key: Key, more: bool, outcome: Outcome<S>, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if matches!(outcome, Outcome::Notified) {
            let Some(queue) = conn.queue.as_mut() else { return };
            return match queue.notice(&mut self.disposal) {
                Ok(()) => self.after_notice(key),
                Err(violation) => self.distrust(violation),
            };
        }
        conn.ended(Op::Send);
        if let Some(queue) = conn.queue.as_mut().filter(|_| more) {
            queue.expect_notice();
        }
        match outcome {
            Outcome::Count(taken) => self.sent(key, taken, None, out),
            Outcome::Failed(errno) => self.sent(key, 0, Some(errno), out),
            _ => self.sent(key, 0, None, out),
        }
    }

    /// A send ended. The kernel took so many bytes.
    #[inline(always)]
    fn sent(&mut self, key: Key, taken: usize, failure: Option<Errno>, out: &mut Completions) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(queue) = conn.queue.as_mut() else { return };
        let left = match queue.complete(taken, &mut self.disposal, |tag| self.sent_tags.push(tag)) {
            Ok(left) => left,
            Err(violation) => return self.distrust(violation),
        };
        conn.active_at = now;
        let (empty, at_rest) = (queue.is_empty(), queue.is_idle());
        let idle = empty && !conn.has(flag::WRITE_SHUT) && conn.phase == Phase::Open;
        self.stats.sends += 1;
        self.stats.bytes_sent += taken as u64;
        if idle && at_rest && taken > 0 && self.sent_tags.is_empty() && !conn.has(flag::FULL) {
            // The common case: all of it left, and nobody waits to be told.
            self.spare_queues.give(conn.queue.take().expect("looked at above"));
            return;
        }
        self.stats.partial_sends += u64::from(taken > 0 && left > 0);
        match idle {
            true => self.recycle_queue(key),
            false if mutant::is(Mutant::LostRest) && taken > 0 => {}
            false => self.mark_dirty(key),
        }
        if let Some(errno) = failure {
            self.send_failed(key, errno);
        }
        self.tell_sent(key, out);
        self.tell_drained(key, out);
    }

    /// Tells of tagged payloads that left.
    fn tell_sent(&mut self, key: Key, out: &mut Completions) {
        let mut tags = std::mem::take(&mut self.sent_tags);
        for tag in tags.drain(..) {
            self.emit(key, Event::Sent { tag }, out);
        }
        self.sent_tags = tags;
    }

    /// Says that sending is welcome again, if it was not and now is.
    fn tell_drained(&mut self, key: Key, out: &mut Completions) {
        let (low, entries_low) = (self.config.send_low_watermark, self.config.send_entries_max / 2);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let entries = conn.queue.as_ref().map_or(0, |queue| queue.entries());
        if !conn.has(flag::FULL) || conn.queued_bytes() > low || entries > entries_low {
            return;
        }
        conn.unset(flag::FULL);
        if conn.is_open() && conn.may_queue() && !mutant::is(Mutant::NoDrained) {
            self.emit(key, Event::Drained, out);
        }
    }

    fn after_notice(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.phase == Phase::Ghost && !conn.owes_notices() {
            self.conns.remove(key);
            self.retry_paused_listeners();
        }
    }

    fn send_failed(&mut self, key: Key, errno: Errno) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match errno.0 {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => self.mark_dirty(key),
            // Zero-copy was refused: this kind of socket cannot, or its memory may not be locked. Copy instead.
            libc::EOPNOTSUPP | libc::ENOBUFS | libc::ENOMEM if !conn.has(flag::NO_ZERO_COPY) => {
                conn.set(flag::NO_ZERO_COPY | flag::PEER_KNOWN);
                self.mark_dirty(key);
            }
            // Data that came before the failure is still there: read it, up to the error or the end.
            _ if conn.is_open() && conn.wants_recv() => {
                conn.set(flag::WRITE_DEAD);
                conn.set_reason(broken_kind(errno), Some(errno));
                self.mark_dirty(key);
            }
            _ => self.broke(key, errno),
        }
    }

    /// The connection broke: the end, for this reason, unless all was well already.
    pub(super) fn broke(&mut self, key: Key, errno: Errno) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        // After a local close, a reset that finds nothing left to send changes nothing.
        let harmless = conn.phase == Phase::Closing && conn.queue_is_empty() && conn.has(flag::FIN_SENT);
        match harmless {
            true => self.end_phase(key),
            false => self.terminate(key, broken_kind(errno), Some(errno)),
        }
    }
}

fn broken_kind(errno: Errno) -> CloseKind {
    match errno.0 {
        libc::ECONNRESET
        | libc::EPIPE
        | libc::ETIMEDOUT
        | libc::ECONNABORTED
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::ENETDOWN => CloseKind::Reset,
        _ => CloseKind::Failed,
    }
}
