//! Receiving into the caller's buffer. Owns: the buffer from `recv_into` to `Filled`. Invariant:
//! the connection owns the buffer, or the one receive in flight does (`flag::RECV_INTO`). Must not
//! know how a backend fills it.

use super::conn::{Conn, Phase, flag};
use super::{Core, Engine, Full};
use crate::backend::{Backend, OpKind, OpResult, Operation, Started};
use crate::buf::{Lease, RecvBuf};
use crate::completion::{Completions, Event};
use crate::error::Error;
use crate::id::{ConnId, Key};
use bytes::BytesMut;

impl Engine {
    /// Appends the next `len` bytes of the stream to `buffer`, also while reads are paused. The
    /// kernel writes to the buffer directly, except for bytes that were received before. The buffer
    /// is returned by [`Event::Filled`]: with `len` more bytes, or with fewer if the stream or the
    /// connection ended first. After that data is delivered as [`Event::Received`] again, unless
    /// reads are paused.
    ///
    /// For large payloads of known size: parse the header from [`Event::Received`], then receive
    /// the rest of the body with this call.
    ///
    /// # Errors
    /// [`Error::Stale`]; [`Error::State`] if `len` is zero, another buffer is being filled, or the
    /// stream has ended. The buffer is dropped on an error.
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
    /// theirs.write_all(b"body")?;
    /// engine.recv_into(conn, bytes::BytesMut::new(), 4)?;
    /// engine.poll(&mut completions, None)?;
    /// let event = completions.pop().map(|completion| completion.event);
    /// assert!(matches!(event, Some(Event::Filled(buffer)) if &buffer[..] == b"body"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_into(&mut self, id: ConnId, buffer: BytesMut, len: usize) -> Result<(), Error> {
        self.core_mut()?.begin_recv_into(id.0, buffer, len)
    }
}

/// Starts a receive into the buffer of a connection.
#[inline]
pub(super) fn start_recv_into<B: Backend>(
    backend: &mut B,
    key: Key,
    conn: &mut Conn,
) -> Result<(), Full> {
    let Some(recv_buf) = conn.take_recv_buf() else { return Ok(()) };
    match backend.start(key, Operation::RecvInto(recv_buf)) {
        Started::NoRoom(Operation::RecvInto(recv_buf)) => {
            conn.put_recv_buf(recv_buf);
            Err(Full)
        }
        Started::InFlight | Started::Done | Started::Sent(..) | Started::NoRoom(_) => {
            conn.set(flag::RECV_INTO);
            conn.started(OpKind::Recv);
            Ok(())
        }
    }
}

impl Core {
    fn begin_recv_into(&mut self, key: Key, buffer: BytesMut, len: usize) -> Result<(), Error> {
        let conn = self.endpoints.conn_mut(key).ok_or(Error::Stale)?;
        if len == 0 {
            return Err(Error::State(
                "the length is zero: the result would be the same as at the end of the stream",
            ));
        }
        if conn.is_receiving_into() {
            return Err(Error::State("another buffer is being filled"));
        }
        if !matches!(conn.phase, Phase::Open | Phase::Connecting) {
            return Err(Error::State("the connection is closing"));
        }
        if conn.has(flag::READ_CLOSED) && !conn.has_held() && !conn.quota.has_deferred() {
            return Err(Error::State("the stream has ended"));
        }
        conn.put_recv_buf(self.recv_bufs.begin(buffer, len));
        self.staging.add(conn, key);
        if conn.quota.has_deferred() {
            self.hold_deferred(key);
        }
        Ok(())
    }

    /// A receive into the caller's buffer completed.
    pub(super) fn filled(
        &mut self,
        key: Key,
        recv_buf: Box<RecvBuf>,
        result: OpResult,
        out: &mut Completions,
    ) {
        let now = self.now;
        let Some(conn) = self.endpoints.conn_mut(key) else {
            return drop(self.recv_bufs.end(recv_buf));
        };
        conn.ended(OpKind::Recv);
        conn.unset(flag::RECV_INTO);
        self.staging.add(conn, key);
        if let Ok(bytes @ 1..) = result.get() {
            self.stats.receives += 1;
            self.stats.bytes_received += bytes as u64;
            conn.note_activity(now);
            if recv_buf.is_done() {
                let buffer = self.recv_bufs.end(recv_buf);
                return self.emit(key, Event::Filled(buffer), out);
            }
        }
        conn.put_recv_buf(recv_buf);
        match result.get() {
            Ok(0) => self.read_closed(key, out),
            Ok(_) => {}
            Err(errno) => self.recv_failed(key, errno, out),
        }
    }

    /// Copies received data to the caller's buffer, if there is one. Returns the rest.
    pub(super) fn copy_into_recv_buf(
        &mut self,
        key: Key,
        mut lease: Lease,
        out: &mut Completions,
    ) -> Option<Lease> {
        let conn = self.endpoints.conn_mut(key)?;
        let Some(recv_buf) = conn.recv_buf().filter(|recv_buf| !recv_buf.is_done()) else {
            return Some(lease);
        };
        let taken = recv_buf.copy_from(&lease);
        let rest = (taken < lease.len()).then(|| {
            lease.skip_front(taken);
            lease
        });
        self.return_recv_buf(key, false, out);
        rest
    }

    /// Returns the caller's buffer with what it has.
    pub(super) fn end_recv_into(&mut self, key: Key, out: &mut Completions) {
        self.return_recv_buf(key, true, out);
    }

    /// Returns the caller's buffer if it is filled, or also if it is filled in part.
    fn return_recv_buf(&mut self, key: Key, in_part: bool, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if conn.recv_buf().is_none_or(|recv_buf| !recv_buf.is_done() && !in_part) {
            return;
        }
        let Some(recv_buf) = conn.take_recv_buf() else { return };
        let buffer = self.recv_bufs.end(recv_buf);
        self.emit(key, Event::Filled(buffer), out);
        self.stage(key);
    }
}
