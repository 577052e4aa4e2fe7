//! Receiving. Owns: the way of received bytes to the caller, into a caller's buffer, or (after a local close) to nowhere; pausing
//! and parking. Invariant: whatever way they take, the bytes of a connection keep their order.

use super::Engine;
use super::conn::{Conn, Phase, flag};
use super::core::Core;
use crate::backend::{Backend, Op, Outcome, QueueFull};
use crate::buf::{Fill, Lease};
use crate::completion::{CloseKind, Completion, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};
use crate::mutant::{self, Mutant};
use bytes::BytesMut;

impl Engine {
    /// Stops delivering data of a connection: no [`Event::Received`] and no [`Event::ReadClosed`] comes from later polls, and the
    /// peer soon feels the pressure. What arrived already is kept, in order. What already is in the caller's
    /// [`Completions`] stays there; a buffer to fill ([`Engine::recv_into`]) that meets the end of the stream still tells it. While paused, the peer's end or reset is noticed only by a send that fails.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn pause_reads(&mut self, id: ConnId) -> Result<(), Error> {
        let core = self.own()?;
        core.conn(id.0)?.set(flag::PAUSED);
        core.recall_pending(id.0);
        core.mark_dirty(id.0);
        Ok(())
    }

    /// Delivers data of a connection again.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn resume_reads(&mut self, id: ConnId) -> Result<(), Error> {
        let core = self.own()?;
        core.conn(id.0)?.unset(flag::PAUSED);
        core.mark_dirty(id.0);
        Ok(())
    }

    /// Receives the next `len` bytes behind what `buffer` holds, without a copy through the pool where that is possible, even
    /// while reads are paused. The buffer comes back in [`Event::Filled`]: with all of them, or with fewer if the stream or the
    /// connection ended first. Afterwards streaming goes on, unless paused.
    ///
    /// For large payloads of known size: take the head from the stream, then receive the rest of the body like this.
    ///
    /// # Errors
    /// [`Error::Stale`]; [`Error::State`] if `len` is zero, a buffer is being filled already, or the stream has ended. The
    /// buffer is dropped then.
    pub fn recv_into(&mut self, id: ConnId, buffer: BytesMut, len: usize) -> Result<(), Error> {
        let core = self.own()?;
        let conn = core.conn(id.0)?;
        if len == 0 {
            return Err(Error::State("a receive of no bytes would look like the end of the stream"));
        }
        if conn.is_filling() {
            return Err(Error::State("a buffer is being filled already"));
        }
        if !matches!(conn.phase, Phase::Open | Phase::Connecting) {
            return Err(Error::State("the connection is closing"));
        }
        if conn.has(flag::READ_CLOSED) && !conn.has_stash() && conn.deferred == 0 {
            return Err(Error::State("the peer has sent all it will"));
        }
        conn.cold().fill = Some(Fill::new(buffer, len));
        core.recall_pending(id.0);
        core.mark_dirty(id.0);
        Ok(())
    }
}

impl Core {
    /// Starts or ends receives as the state wants it, and delivers what was held back.
    pub(super) fn service_recv<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), QueueFull> {
        self.deliver_stash(key, out);
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        // A fill takes over from streaming when that has ended; a close takes over from a fill.
        let fill_next = conn.is_filling() && conn.phase == Phase::Open;
        if conn.in_flight(Op::Recv) {
            let unwanted = !conn.wants_recv() || fill_next != conn.has(flag::FILLING);
            if unwanted && conn.cancellable(Op::Recv) {
                backend.cancel(key, Op::Recv)?;
                conn.advised_to_end(Op::Recv);
            }
            return Ok(());
        }
        if !conn.wants_recv() {
            return Ok(());
        }
        if fill_next {
            let fill = conn.fill().expect("checked above");
            backend.start_recv_into(key, fill)?;
            conn.set(flag::FILLING);
        } else {
            backend.start_recv(key)?;
            conn.unset(flag::FILLING);
        }
        conn.started(Op::Recv);
        Ok(())
    }

    /// A receive has bytes.
    #[inline(always)]
    pub(super) fn on_data(&mut self, key: Key, more: bool, lease: Lease, out: &mut Completions) {
        let (now, turn, budget) = (self.now, self.turn, self.config.budget as u16);
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.stats.receives += 1;
        self.stats.bytes_received += lease.len() as u64;
        conn.active_at = now;
        if !more {
            conn.ended(Op::Recv);
            conn.unset(flag::FILLING);
            self.staged.mark(conn, key);
        }
        if conn.takes_data_as_it_comes() && !out.is_full() && conn.within_budget(turn, budget) {
            out.push(Completion { conn: ConnId(key), tag: conn.tag, event: Event::Received(lease) });
        } else {
            self.absorb(key, lease, out);
        }
    }

    /// A receive ended, but for the bytes it had.
    pub(super) fn on_recv<S>(&mut self, key: Key, outcome: Outcome<S>, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.ended(Op::Recv);
        conn.unset(flag::FILLING);
        self.staged.mark(conn, key);
        match outcome {
            Outcome::Filled(written) => {
                self.stats.receives += 1;
                self.stats.bytes_received += written.bytes() as u64;
                let now = self.now;
                let Some(conn) = self.conns.get_mut(key) else { return };
                conn.active_at = now;
                conn.fill().expect("only a fill is filled").advance(written);
                self.finish_fill(key, false, out);
            }
            Outcome::Failed(errno) => self.recv_failed(key, errno, out),
            Outcome::Count(_) => self.read_closed(key, out),
            _ => {}
        }
    }

    /// Received bytes go where the caller wants them.
    #[inline(never)]
    fn absorb(&mut self, key: Key, lease: Lease, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.is_open() {
            self.stats.bytes_discarded += lease.len() as u64;
            return;
        }
        // What was held back goes first, into a caller's buffer too.
        if conn.has_stash() {
            conn.cold().stash.push_back(lease);
            return;
        }
        let Some(lease) = self.fill_from(key, lease, out) else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.has(flag::PAUSED) && !mutant::is(Mutant::LeakyPause) {
            conn.cold().stash.push_back(lease);
        } else {
            self.emit(key, Event::Received(lease), out);
        }
    }

    /// Received bytes go into the caller's buffer first, if there is one. Returns what is left of them.
    fn fill_from(&mut self, key: Key, mut lease: Lease, out: &mut Completions) -> Option<Lease> {
        let Some(fill) = self.conns.get_mut(key)?.fill().filter(|fill| !fill.is_done()) else { return Some(lease) };
        let taken = fill.copy_from(&lease);
        let rest = (taken < lease.len() && !mutant::is(Mutant::LostTail)).then(|| {
            lease.skip_front(taken);
            lease
        });
        self.finish_fill(key, false, out);
        rest
    }

    /// The caller closes: what was held back is not wanted any more.
    pub(super) fn discard_stash(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.unset(flag::EOF_HELD);
        if let Some(cold) = conn.cold.as_mut() {
            let discarded: usize = std::mem::take(&mut cold.stash).iter().map(|lease| lease.len()).sum();
            self.stats.bytes_discarded += discarded as u64;
        }
    }

    /// Delivers what was held back while reads were paused, as far as the caller wants it now.
    fn deliver_stash(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let wanted = conn.is_open() && (!conn.has(flag::PAUSED) || conn.is_filling());
        if !wanted || !(conn.has_stash() || conn.has(flag::EOF_HELD)) {
            return;
        }
        // A fill in flight took over after the stash was emptied, so nothing is overtaken here.
        let stash = std::mem::take(&mut conn.cold().stash);
        for lease in stash {
            self.absorb(key, lease, out);
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.has(flag::EOF_HELD) && !conn.has_stash() {
            conn.unset(flag::EOF_HELD);
            self.tell_read_closed(key, out);
        }
        if let Some(conn) = self.conns.get_mut(key) {
            conn.shed_cold();
        }
    }

    /// Gives a caller's buffer back if it is full, or in any case.
    pub(super) fn finish_fill(&mut self, key: Key, in_any_case: bool, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.fill().is_none_or(|fill| !fill.is_done() && !in_any_case) {
            return;
        }
        // The rare part stays: who fills once will fill again, and that must not allocate.
        let fill = conn.cold().fill.take().expect("looked at above");
        self.emit(key, Event::Filled(fill.into_buffer()), out);
        self.mark_dirty(key);
    }

    fn recv_failed(&mut self, key: Key, errno: Errno, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match errno.0 {
            // Cancelled, interrupted or early: the state decides what is next.
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
            libc::ENOBUFS => {
                if !conn.has(flag::PARKED) {
                    conn.set(flag::PARKED);
                    self.parked.push_back(key);
                }
                self.stats.pool_exhausted += 1;
            }
            _ => {
                conn.set(flag::READ_CLOSED);
                self.finish_fill(key, true, out);
                self.broke(key, errno);
            }
        }
    }

    fn read_closed(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.set(flag::READ_CLOSED);
        match conn.phase {
            Phase::Closing => self.mark_dirty(key),
            Phase::Open if conn.has(flag::WRITE_DEAD) => {
                self.finish_fill(key, true, out);
                self.terminate(key, CloseKind::Reset, None);
            }
            Phase::Open => {
                if conn.has(flag::PAUSED) && !conn.is_filling() || conn.has_stash() {
                    if !mutant::is(Mutant::LostEof) {
                        conn.set(flag::EOF_HELD);
                    }
                } else {
                    self.tell_read_closed(key, out);
                }
            }
            _ => {}
        }
    }

    fn tell_read_closed(&mut self, key: Key, out: &mut Completions) {
        self.finish_fill(key, true, out);
        self.emit(key, Event::ReadClosed, out);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.has(flag::CLOSE_WITH_PEER) {
            self.begin_close(key, CloseKind::PeerClosed);
        }
        self.mark_dirty(key);
    }

    /// Received data that the end of the connection finds still held back: the peer sent it in good faith.
    pub(super) fn release_stash(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(cold) = conn.cold.as_mut() else { return };
        if matches!(cold.reason, None | Some((CloseKind::Local | CloseKind::Aborted | CloseKind::Shutdown, _))) {
            return self.discard_stash(key);
        }
        for lease in std::mem::take(&mut cold.stash) {
            if let Some(rest) = self.fill_from(key, lease, out) {
                self.emit(key, Event::Received(rest), out);
            }
        }
        self.finish_fill(key, true, out);
        if let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.has(flag::EOF_HELD)) {
            conn.unset(flag::EOF_HELD);
            self.emit(key, Event::ReadClosed, out);
        }
    }

    /// Buffers came back: as many parked connections may receive again.
    pub(super) fn unpark(&mut self, free_buffers: usize) {
        for _ in 0..free_buffers.min(self.parked.len()) {
            let key = self.parked.pop_front().expect("counted above");
            if mutant::is(Mutant::ForgottenPark) {
                continue;
            }
            if let Some(conn) = self.conns.get_mut(key) {
                Conn::unset(conn, flag::PARKED);
                self.mark_dirty(key);
            }
        }
    }
}
