//! Receiving. Owns: when a receive is started or cancelled, and what happens to received data: it
//! is delivered, copied to the caller's buffer, held while reads are paused, or discarded after a
//! local close. Invariant: the bytes of a connection keep their order. Must not know how a backend
//! selects buffers.

use super::conn::{Phase, flag};
use super::recv_into::start_recv_into;
use super::{Core, Engine, Full};
use crate::backend::{Backend, OpKind, Operation, Started};
use crate::buf::Lease;
use crate::completion::{CloseKind, Completion, Completions, Event};
use crate::error::{Errno, Error};
use crate::id::{ConnId, Key};

impl Engine {
    /// Pauses reads of a connection: later polls deliver no [`Event::Received`] and no
    /// [`Event::ReadClosed`]. TCP flow control then slows the peer down. Data that was received
    /// already is held, in order. Events already in the caller's [`Completions`] stay there.
    /// A receive into a buffer ([`Engine::recv_into`]) continues, and still reports the end of the
    /// stream. [`Event::HungUp`] reports that the peer has hung up.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// ```
    /// # use proactor::{AdoptedId, Completions, Config, Engine, Event, SocketOptions};
    /// # use std::os::unix::net::UnixStream;
    /// # let mut engine = Engine::new(Config::default())?;
    /// # let mut completions = Completions::with_capacity(16);
    /// # let (ours, mut theirs) = UnixStream::pair()?;
    /// # let AdoptedId::Conn(conn) = engine.adopt(ours.into(), SocketOptions::default())? else {
    /// #     unreachable!()
    /// # };
    /// use std::io::Write;
    /// engine.pause_reads(conn)?;
    /// theirs.write_all(b"data")?;
    /// let timeout = Some(std::time::Duration::from_millis(1));
    /// assert_eq!(engine.poll(&mut completions, timeout)?, 0);
    /// engine.resume_reads(conn)?;
    /// engine.poll(&mut completions, None)?;
    /// let event = completions.pop().map(|completion| completion.event);
    /// assert!(matches!(event, Some(Event::Received(data)) if &data[..] == b"data"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pause_reads(&mut self, id: ConnId) -> Result<(), Error> {
        let core = self.core_mut()?;
        core.conn_mut(id.0)?.set(flag::PAUSED);
        core.hold_deferred(id.0);
        core.stage(id.0);
        Ok(())
    }

    /// Resumes reads of a connection.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn resume_reads(&mut self, id: ConnId) -> Result<(), Error> {
        let core = self.core_mut()?;
        core.conn_mut(id.0)?.unset(flag::PAUSED);
        core.stage(id.0);
        Ok(())
    }
}

impl Core {
    /// Starts or cancels a receive as the state requires it, and delivers held data.
    pub(super) fn service_recv<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), Full> {
        let Some(mut conn) = self.endpoints.conn_mut(key) else { return Ok(()) };
        if conn.has_held() || conn.has(flag::EOF_HELD) {
            self.deliver_held(key, out);
            conn = match self.endpoints.conn_mut(key) {
                Some(conn) => conn,
                None => return Ok(()),
            };
        }
        // A receive of the other kind (into the pool or into the caller's buffer) is started only
        // after the one in flight has ended.
        let into_next = conn.is_receiving_into() && conn.phase == Phase::Open;
        if conn.in_flight(OpKind::Recv) {
            let unwanted = !conn.wants_recv() || into_next != conn.has(flag::RECV_INTO);
            if unwanted && conn.begin_cancel(OpKind::Recv) {
                backend.cancel(key, OpKind::Recv);
            }
            return Ok(());
        }
        if !conn.wants_recv() {
            return Ok(());
        }
        if into_next {
            return start_recv_into(backend, key, conn);
        }
        match backend.start(key, Operation::Recv) {
            Started::NoRoom(_) => Err(Full),
            Started::InFlight | Started::Done | Started::Sent(..) => {
                conn.started(OpKind::Recv);
                Ok(())
            }
        }
    }

    /// A receive into the pool completed with data.
    #[inline(always)]
    pub(super) fn received(&mut self, key: Key, more: bool, lease: Lease, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        self.stats.receives += 1;
        self.stats.bytes_received += lease.len() as u64;
        conn.note_activity(self.now);
        if !more {
            conn.ended(OpKind::Recv);
            self.staging.add(conn, key);
        }
        if self.delivery.may_deliver_now(conn, out) {
            out.push(Completion {
                conn: ConnId(key),
                tag: conn.tag,
                event: Event::Received(lease),
            });
        } else {
            self.deliver_or_hold(key, lease, out);
        }
    }

    /// A receive into the pool ended: at the end of the stream, or with an error.
    pub(super) fn recv_ended(
        &mut self,
        key: Key,
        result: Result<(), Errno>,
        out: &mut Completions,
    ) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.ended(OpKind::Recv);
        self.staging.add(conn, key);
        match result {
            Ok(()) => self.read_closed(key, out),
            Err(errno) => self.recv_failed(key, errno, out),
        }
    }

    /// Data that cannot be delivered directly: discards it, holds it, copies it to the caller's
    /// buffer, or emits it.
    #[inline(never)]
    fn deliver_or_hold(&mut self, key: Key, lease: Lease, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if !conn.is_open() {
            self.stats.bytes_discarded += lease.len() as u64;
            return;
        }
        // Held data is older, also for the caller's buffer.
        if conn.has_held() {
            conn.hold(lease);
            return;
        }
        let Some(lease) = self.copy_into_recv_buf(key, lease, out) else { return };
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.has(flag::PAUSED) {
            conn.hold(lease);
        } else {
            self.emit(key, Event::Received(lease), out);
        }
    }

    /// Discards held data, because the caller has closed the connection.
    pub(super) fn discard_held(&mut self, key: Key) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.unset(flag::EOF_HELD);
        let discarded: usize = conn.take_held().iter().map(|lease| lease.len()).sum();
        self.stats.bytes_discarded += discarded as u64;
    }

    /// Delivers held data if reads are resumed, or copies it to the caller's buffer.
    fn deliver_held(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        let wanted = conn.is_open() && (!conn.has(flag::PAUSED) || conn.is_receiving_into());
        if !wanted {
            return;
        }
        // Held data is older than the data of a `RecvInto` in flight, so this keeps the order.
        let held = conn.take_held();
        for lease in held {
            self.deliver_or_hold(key, lease, out);
        }
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.has(flag::EOF_HELD) && !conn.has_held() {
            conn.unset(flag::EOF_HELD);
            self.emit_read_closed(key, out);
        }
        if let Some(conn) = self.endpoints.conn_mut(key) {
            conn.free_empty_cold();
        }
    }

    pub(super) fn recv_failed(&mut self, key: Key, errno: Errno, out: &mut Completions) {
        match errno.0 {
            // The connection is staged: `service_recv` decides whether to start a new receive.
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
            libc::ENOBUFS => self.park(key),
            _ => {
                let Some(conn) = self.endpoints.conn_mut(key) else { return };
                conn.set(flag::READ_CLOSED);
                self.end_recv_into(key, out);
                self.fail_conn(key, errno);
            }
        }
    }

    /// The peer's FIN was received.
    pub(super) fn read_closed(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        conn.set(flag::READ_CLOSED);
        match conn.phase {
            Phase::Closing => self.staging.add(conn, key),
            Phase::Open if conn.has(flag::WRITE_FAILED) => {
                self.end_recv_into(key, out);
                self.terminate(key, CloseKind::Reset, None);
            }
            Phase::Open => {
                if conn.has(flag::PAUSED) && !conn.is_receiving_into() || conn.has_held() {
                    conn.set(flag::EOF_HELD);
                } else {
                    self.emit_read_closed(key, out);
                }
            }
            Phase::Connecting | Phase::Terminating => {}
        }
    }

    fn emit_read_closed(&mut self, key: Key, out: &mut Completions) {
        self.end_recv_into(key, out);
        self.emit(key, Event::ReadClosed, out);
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.has(flag::CLOSE_WITH_PEER) {
            self.begin_close(key, CloseKind::PeerClosed);
        }
        self.stage(key);
    }

    /// At the end of a connection: delivers the held data, unless the caller has closed or aborted
    /// the connection.
    pub(super) fn deliver_held_at_end(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if matches!(
            conn.reason(),
            None | Some(CloseKind::Local | CloseKind::Aborted | CloseKind::Shutdown)
        ) {
            return self.discard_held(key);
        }
        for lease in conn.take_held() {
            if let Some(rest) = self.copy_into_recv_buf(key, lease, out) {
                self.emit(key, Event::Received(rest), out);
            }
        }
        self.end_recv_into(key, out);
        if let Some(conn) = self.endpoints.conn_mut(key).filter(|conn| conn.has(flag::EOF_HELD)) {
            conn.unset(flag::EOF_HELD);
            self.emit(key, Event::ReadClosed, out);
        }
    }
}
