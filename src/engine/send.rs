//! Sending. Owns: the admission of payloads to the send queue, when a send is started, and how its
//! completion is handled. Invariant: a connection has at most one send in flight. That send owns a
//! batch, and payloads queued meanwhile follow it in another queue. Must not know how a backend
//! sends.

use super::conn::{Conn, Phase, flag};
use super::{Core, Engine, Full};
use crate::backend::{Backend, OpKind, OpResult, Operation, SendBatch, Side, Started};
use crate::buf::{Payload, SendMemory};
use crate::completion::{CloseKind, Completions, Event};
use crate::error::{Errno, Error, SendError, WriteError};
use crate::id::{ConnId, Key};

impl Engine {
    /// Queues a payload for sending, without a copy. The next [`Engine::poll`] sends it, together
    /// with the other payloads that are queued for the connection. While the connection is being
    /// opened, payloads wait in the queue. An empty payload is valid and sends nothing.
    ///
    /// # Errors
    /// Each error returns the payload: [`SendError::Full`] at the high watermark,
    /// [`SendError::Closed`] after `shutdown_write` or `close`, [`SendError::Stale`],
    /// [`SendError::Forked`].
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
    /// use std::io::Read;
    /// engine.send(conn, "static bytes, ")?;
    /// engine.write(conn, b"copied bytes, ")?;
    /// engine.send_tagged(conn, vec![b'o', b'k'], 1)?;
    /// assert_eq!(engine.queued_bytes(conn)?, 30);
    /// engine.poll(&mut completions, None)?; // reports Event::Sent
    /// let mut received = [0; 30];
    /// theirs.read_exact(&mut received)?;
    /// assert_eq!(&received, b"static bytes, copied bytes, ok");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn send(&mut self, id: ConnId, payload: impl Into<Payload>) -> Result<(), SendError> {
        self.send_payload(id, payload.into(), None)
    }

    /// As [`Engine::send`], with a tag: [`Event::Sent`] with this tag follows when the kernel has
    /// taken the last byte of the payload.
    ///
    /// # Errors
    /// As [`Engine::send`].
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
    /// engine.send_tagged(conn, "data", 7)?;
    /// engine.poll(&mut completions, None)?;
    /// let event = completions.pop().map(|completion| completion.event);
    /// assert!(matches!(event, Some(Event::Sent { tag: 7 })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_tagged(
        &mut self,
        id: ConnId,
        payload: impl Into<Payload>,
        tag: u64,
    ) -> Result<(), SendError> {
        self.send_payload(id, payload.into(), Some(tag))
    }

    #[inline]
    fn send_payload(
        &mut self,
        id: ConnId,
        payload: Payload,
        tag: Option<u64>,
    ) -> Result<(), SendError> {
        if self.is_child() {
            return Err(SendError::Forked(payload));
        }
        self.core.send(id.0, payload, tag)
    }

    /// Copies a small message to the send queue of a connection. Consecutive small writes share a
    /// payload.
    ///
    /// # Errors
    /// As [`Engine::send`]. On an error nothing was copied.
    pub fn write(&mut self, id: ConnId, bytes: &[u8]) -> Result<(), WriteError> {
        if self.is_child() {
            return Err(WriteError::Forked);
        }
        self.core.write(id.0, bytes)
    }

    /// The number of queued bytes that the kernel has not taken yet.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn queued_bytes(&self, id: ConnId) -> Result<usize, Error> {
        Ok(self.conn(id)?.send.bytes())
    }
}

/// The send queue of a connection, and the size of the batch in flight.
#[derive(Debug, Default)]
pub(super) struct SendSide {
    /// Payloads that are not in flight.
    queue: Option<SendBatch>,
    in_flight: BatchSize,
}

/// The size of the batch in flight: 44 bits for bytes, 20 for payloads (`Tuning::send_entries_max`
/// is less than 2^20).
#[derive(Clone, Copy, Debug, Default)]
struct BatchSize(u64);

const BATCH_BYTES_MAX: u64 = (1 << 44) - 1;

impl BatchSize {
    #[inline]
    fn of(batch: &SendBatch) -> BatchSize {
        BatchSize((batch.bytes() as u64).min(BATCH_BYTES_MAX) | (batch.entries() as u64) << 44)
    }

    #[inline]
    fn bytes(self) -> usize {
        (self.0 & BATCH_BYTES_MAX) as usize
    }

    #[inline]
    fn entries(self) -> usize {
        (self.0 >> 44) as usize
    }
}

impl SendSide {
    /// The number of bytes that the kernel has not taken yet.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.bytes()) + self.in_flight.bytes()
    }

    #[inline]
    fn entries(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.entries()) + self.in_flight.entries()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.entries() == 0
    }

    #[inline]
    fn queue(&mut self, memory: &mut SendMemory) -> &mut SendBatch {
        self.queue.get_or_insert_with(|| memory.queue())
    }

    /// The queue, if it has a payload.
    #[inline]
    fn sendable(&self) -> Option<&SendBatch> {
        self.queue.as_ref().filter(|queue| !queue.is_empty())
    }

    /// Takes the queue as the batch of a send.
    #[inline]
    fn take_batch(&mut self) -> Option<SendBatch> {
        self.sendable()?;
        let batch = self.queue.take()?;
        self.in_flight = BatchSize::of(&batch);
        Some(batch)
    }

    /// Takes the queue as the batch that is sent with the connect, if it is small enough.
    pub(super) fn take_early_batch(
        &mut self,
        payloads_max: usize,
        zero_copy_bytes_min: usize,
    ) -> Option<SendBatch> {
        let small = 1..zero_copy_bytes_min;
        let fits = |queue: &&SendBatch| {
            small.contains(&queue.front_len()) && queue.entries() <= payloads_max
        };
        self.queue.as_ref().filter(fits)?;
        self.take_batch()
    }

    /// Puts a batch back, in front of the payloads that were queued meanwhile.
    pub(super) fn put_back(&mut self, mut batch: SendBatch, memory: &mut SendMemory) {
        self.in_flight = BatchSize::default();
        if let Some(mut later) = self.queue.take() {
            batch.append(&mut later);
            memory.retire_queue(later);
        }
        self.queue = Some(batch);
    }

    /// Retires the queue and its payloads.
    pub(super) fn retire(&mut self, memory: &mut SendMemory) {
        if let Some(queue) = self.queue.take() {
            memory.retire_queue(queue);
        }
    }

    /// Retires the queue if it is empty: other connections use its memory.
    pub(super) fn retire_empty(&mut self, memory: &mut SendMemory) {
        if let Some(queue) = self.queue.take_if(|queue| queue.is_empty()) {
            memory.retire_queue(queue);
        }
    }
}

/// Why a payload cannot be queued.
enum EnqueueError {
    Stale,
    Closed,
    Full,
}

impl Conn {
    /// Payloads are queued, or the write side was shut down or has failed.
    #[inline]
    pub(super) fn needs_send_service(&self) -> bool {
        self.send.queue.is_some() || self.has(flag::WRITE_SHUT | flag::WRITE_FAILED)
    }

    fn may_queue(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Connecting)
            && !self.has(flag::WRITE_SHUT | flag::WRITE_FAILED)
    }
}

impl Core {
    /// Calls `add` with the queue of a connection, and stages the connection. At the high watermark
    /// it sets `flag::FULL`, so that `Drained` follows.
    #[inline(always)]
    fn enqueue(
        &mut self,
        key: Key,
        add: impl FnOnce(&mut SendBatch, &mut SendMemory),
    ) -> Result<(), EnqueueError> {
        let (high, entries_max) =
            (self.config.send_high_watermark, self.config.tuning.send_entries_max);
        let Some(conn) = self.endpoints.conn_mut(key) else { return Err(EnqueueError::Stale) };
        if !conn.may_queue() {
            return Err(EnqueueError::Closed);
        }
        let in_flight = conn.send.in_flight;
        let queue = conn.send.queue(&mut self.send_memory);
        if queue.bytes() + in_flight.bytes() >= high
            || queue.entries() + in_flight.entries() >= entries_max
        {
            conn.set(flag::FULL);
            self.stats.sends_refused += 1;
            return Err(EnqueueError::Full);
        }
        add(queue, &mut self.send_memory);
        if queue.bytes() + in_flight.bytes() >= high {
            conn.set(flag::FULL);
        }
        self.staging.add(conn, key);
        Ok(())
    }

    #[inline]
    pub(super) fn send(
        &mut self,
        key: Key,
        payload: Payload,
        tag: Option<u64>,
    ) -> Result<(), SendError> {
        let mut payload = Some(payload);
        let result = self.enqueue(key, |queue, _| {
            if let Some(payload) = payload.take() {
                queue.push(payload, tag);
            }
        });
        match (result, payload) {
            (Err(EnqueueError::Stale), Some(payload)) => Err(SendError::Stale(payload)),
            (Err(EnqueueError::Closed), Some(payload)) => Err(SendError::Closed(payload)),
            (Err(EnqueueError::Full), Some(payload)) => Err(SendError::Full(payload)),
            _ => Ok(()),
        }
    }

    #[inline]
    fn write(&mut self, key: Key, bytes: &[u8]) -> Result<(), WriteError> {
        let result = self.enqueue(key, |queue, memory| {
            if !bytes.is_empty() {
                queue.write(bytes, memory);
            }
        });
        result.map_err(|refusal| match refusal {
            EnqueueError::Stale => WriteError::Stale,
            EnqueueError::Closed => WriteError::Closed,
            EnqueueError::Full => WriteError::Full,
        })
    }

    /// Starts a send if a payload is queued, or sends the FIN after the last one.
    pub(super) fn service_send<B: Backend>(
        &mut self,
        backend: &mut B,
        key: Key,
        out: &mut Completions,
    ) -> Result<(), Full> {
        let Some(mut conn) = self.endpoints.conn_mut(key) else { return Ok(()) };
        if conn.in_flight(OpKind::Send) {
            return Ok(());
        }
        let mut front_len = conn.send.sendable().map(|queue| queue.front_len());
        if front_len == Some(0) {
            self.skip_empty_payloads(key, out);
            conn = match self.endpoints.conn_mut(key) {
                Some(conn) => conn,
                None => return Ok(()),
            };
            front_len = conn.send.sendable().map(|queue| queue.front_len());
        }
        if conn.has(flag::WRITE_FAILED) {
            // The connection stays only to receive what the peer sent before the failure. Paused
            // reads receive nothing.
            if conn.is_open() && conn.has(flag::PAUSED) && !conn.is_receiving_into() {
                self.begin_termination(key);
            }
            return Ok(());
        }
        let Some(front_len) = front_len else {
            conn.send.retire_empty(&mut self.send_memory);
            if conn.has(flag::WRITE_SHUT) && !conn.has(flag::FIN_SENT) {
                self.send_fin(backend, key);
            }
            return Ok(());
        };
        let mut zero_copy = false;
        if front_len >= self.zero_copy_threshold {
            zero_copy = self.uses_zero_copy(backend, key);
            conn = match self.endpoints.conn_mut(key) {
                Some(conn) => conn,
                None => return Ok(()),
            };
        }
        let Some(mut batch) = conn.send.take_batch() else { return Ok(()) };
        batch.set_zero_copy(zero_copy);
        match backend.start(key, Operation::Send(batch)) {
            Started::Sent(batch, result) => self.sent(key, batch, result, out),
            Started::NoRoom(Operation::Send(batch)) => {
                conn.send.put_back(batch, &mut self.send_memory);
                return Err(Full);
            }
            Started::InFlight | Started::Done | Started::NoRoom(_) => conn.started(OpKind::Send),
        }
        Ok(())
    }

    /// Completes the empty payloads at the front of the queue, which need no operation.
    fn skip_empty_payloads(&mut self, key: Key, out: &mut Completions) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if let Some(queue) = &mut conn.send.queue {
            queue.advance(0, &mut self.send_memory, &mut self.sent_tags);
        }
        self.emit_sent(key, out);
        self.emit_drained(key, out);
    }

    /// Whether a payload at the threshold is sent with zero-copy on this connection.
    #[inline(never)]
    fn uses_zero_copy<B: Backend>(&mut self, backend: &B, key: Key) -> bool {
        let includes_local = self.config.tuning.zero_copy.includes_local();
        let Some(conn) = self.endpoints.conn_mut(key) else { return false };
        if !conn.has(flag::PEER_ADDR_CHECKED) {
            conn.set(flag::PEER_ADDR_CHECKED);
            if !includes_local && backend.addr(key, Side::Peer).map_or(true, |addr| addr.is_local())
            {
                conn.set(flag::NO_ZERO_COPY);
            }
        }
        !conn.has(flag::NO_ZERO_COPY)
    }

    /// A send completed: the backend returns the batch, and the number of bytes taken or an error.
    #[inline(always)]
    pub(super) fn sent(
        &mut self,
        key: Key,
        batch: SendBatch,
        result: OpResult,
        out: &mut Completions,
    ) {
        let Some(conn) = self.endpoints.conn_mut(key) else {
            return self.send_memory.retire_queue(batch);
        };
        conn.ended(OpKind::Send);
        conn.send.in_flight = BatchSize::default();
        conn.note_activity(self.now);
        let (taken, failure) = match result.get() {
            Ok(taken) => (taken, None),
            Err(errno) => (0, Some(errno)),
        };
        self.stats.sends += 1;
        self.stats.bytes_sent += taken as u64;
        let has_more_to_do = conn.phase != Phase::Open || conn.has(flag::WRITE_SHUT | flag::FULL);
        if !has_more_to_do && taken > 0 && conn.send.queue.is_none() && batch.is_sent_in_full(taken)
        {
            // The common case: the kernel took all bytes.
            if batch.has_tags() {
                batch.tags().for_each(|tag| self.sent_tags.push(tag));
                self.emit_sent(key, out);
            }
            return self.send_memory.retire_queue(batch);
        }
        self.continue_send(key, batch, (taken, failure), out);
    }

    /// Continues after a send that took a part of the batch, or failed, or that the connection
    /// waited for: the rest goes back to the front of the queue, and the connection is staged.
    #[inline(never)]
    fn continue_send(
        &mut self,
        key: Key,
        batch: SendBatch,
        (taken, failure): (usize, Option<Errno>),
        out: &mut Completions,
    ) {
        let Some(conn) = self.endpoints.conn_mut(key) else {
            return self.send_memory.retire_queue(batch);
        };
        self.stats.partial_sends += u64::from(taken > 0 && batch.given() > taken);
        conn.send.put_back(batch, &mut self.send_memory);
        if let Some(queue) = &mut conn.send.queue {
            queue.advance(taken, &mut self.send_memory, &mut self.sent_tags);
        }
        conn.send.retire_empty(&mut self.send_memory);
        let idle = conn.send.is_empty() && !conn.has(flag::WRITE_SHUT) && conn.phase == Phase::Open;
        if !idle {
            self.staging.add(conn, key);
        }
        if let Some(errno) = failure {
            self.send_failed(key, errno);
        }
        self.emit_sent(key, out);
        self.emit_drained(key, out);
    }

    /// Emits `Sent` for the tagged payloads that were taken.
    fn emit_sent(&mut self, key: Key, out: &mut Completions) {
        let mut tags = std::mem::take(&mut self.sent_tags);
        for tag in tags.drain(..) {
            self.emit(key, Event::Sent { tag }, out);
        }
        self.sent_tags = tags;
    }

    /// Emits `Drained` if the send queue was full and fell to the low watermark.
    fn emit_drained(&mut self, key: Key, out: &mut Completions) {
        let (low, entries_low) =
            (self.config.send_low_watermark, self.config.tuning.send_entries_max / 2);
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        if !conn.has(flag::FULL) || conn.send.bytes() > low || conn.send.entries() > entries_low {
            return;
        }
        conn.unset(flag::FULL);
        if conn.is_open() && conn.may_queue() {
            self.emit(key, Event::Drained, out);
        }
    }

    fn send_failed(&mut self, key: Key, errno: Errno) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        match errno.0 {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => self.staging.add(conn, key),
            // The kernel refused zero-copy: EOPNOTSUPP for this type of socket, ENOBUFS or ENOMEM
            // at the limits of optmem_max or RLIMIT_MEMLOCK. Send with a copy.
            libc::EOPNOTSUPP | libc::ENOBUFS | libc::ENOMEM if !conn.has(flag::NO_ZERO_COPY) => {
                conn.set(flag::NO_ZERO_COPY | flag::PEER_ADDR_CHECKED);
                self.staging.add(conn, key);
            }
            // The socket may have data from before the failure: receive up to the end or the error.
            _ if conn.is_open() && conn.wants_recv() => {
                conn.set(flag::WRITE_FAILED);
                conn.set_reason(failure_kind(errno), Some(errno));
                self.staging.add(conn, key);
            }
            _ => self.fail_conn(key, errno),
        }
    }

    /// The connection failed with `errno`: begins to terminate it.
    pub(super) fn fail_conn(&mut self, key: Key, errno: Errno) {
        let Some(conn) = self.endpoints.conn_mut(key) else { return };
        // After a local close whose data and FIN were sent, an error does not change the reason.
        let is_complete =
            conn.phase == Phase::Closing && conn.send.is_empty() && conn.has(flag::FIN_SENT);
        match is_complete {
            true => self.begin_termination(key),
            false => self.terminate(key, failure_kind(errno), Some(errno)),
        }
    }
}

fn failure_kind(errno: Errno) -> CloseKind {
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
