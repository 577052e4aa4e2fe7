//! The model of a random program. Owns: what each connection sent and received, and which calls
//! were made on it. Its invariant: every byte arrives once and in order, or the connection ends
//! with a reason; each connection ends once. An event that violates it is an error with a text.
//! Must not know the engines: it sees calls and events only.

use super::Rng;
use proactor::{CloseKind, CloseReason, ConnId};
use std::collections::VecDeque;
use std::sync::OnceLock;

/// The bytes that one end of a connection sends: its number, then a pattern that depends on number
/// and offset. An echoing end sends what it received.
#[derive(Debug)]
pub struct Stream {
    owner: usize,
    pub written: u64,
    received: u64,
    echo_of: Option<usize>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Conn {
    pub engine: usize,
    pub id: ConnId,
    pub stream: usize,
    /// The stream that it receives, known once the stream's number has arrived.
    source: Option<usize>,
    head: Vec<u8>,
    peer: Option<usize>,
    pub server: bool,
    pub unix: bool,
    pub echo: bool,
    pub connected: bool,
    fin_received: bool,
    pub paused: bool,
    pub hung_up: bool,
    /// An event came although reads are paused: only `Closed` may follow.
    received_while_paused: bool,
    /// The lengths of the `recv_into` calls whose `Filled` has not come. There may be two: the next
    /// call is allowed before the event of the last one is delivered.
    pub fills_pending: VecDeque<usize>,
    /// A buffer came back short: only the end of the stream may follow.
    short_fill: bool,
    pub tags: VecDeque<u64>,
    /// A send returned `Full`, and no `Drained` has come since.
    pub send_refused: bool,
    /// A send was accepted since the last poll.
    pub sent_since_poll: bool,
    pub close_called: bool,
    pub abort_called: bool,
    pub shutdown_write_called: bool,
    pub close_all_called: bool,
    pub closes_with_peer: bool,
    pub has_idle_timeout: bool,
    /// Its host crashed, so it has no `Closed`.
    pub crashed: bool,
    pub closed: Option<CloseReason>,
}

#[derive(Debug, Default)]
pub struct Model {
    pub streams: Vec<Stream>,
    pub conns: Vec<Conn>,
    /// Indices into `conns`, by engine, slot and generation.
    ids: Vec<Vec<Vec<Option<usize>>>>,
}

const HEAD: u64 = 4;

/// The length of the pattern. Each stream starts at another offset of it.
const PERIOD: usize = 65_521;

/// The bytes of a stream from an offset on, up to the end of the pattern.
fn pattern(stream: usize, at: u64) -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut rng = Rng::new(0);
        (0..PERIOD).map(|_| rng.next() as u8).collect()
    });
    &table[(stream * 7_919 + at as usize) % PERIOD..]
}

impl Model {
    /// Adds one end of a connection. An engine that replaces a crashed one has a number of its own.
    pub fn add(&mut self, engine: usize, id: ConnId, server: bool) -> Result<usize, String> {
        let (conn, stream) = (self.conns.len(), self.streams.len());
        self.streams.push(Stream { owner: conn, written: 0, received: 0, echo_of: None });
        self.conns.push(Conn {
            engine,
            id,
            stream,
            source: None,
            head: Vec::new(),
            peer: None,
            server,
            unix: false,
            echo: false,
            connected: server,
            fin_received: false,
            paused: false,
            hung_up: false,
            received_while_paused: false,
            fills_pending: VecDeque::new(),
            short_fill: false,
            tags: VecDeque::new(),
            send_refused: false,
            sent_since_poll: false,
            close_called: false,
            abort_called: false,
            shutdown_write_called: false,
            close_all_called: false,
            closes_with_peer: false,
            has_idle_timeout: false,
            crashed: false,
            closed: None,
        });
        let len_for = |length: usize, index: usize| length.max(index + 1);
        self.ids.resize(len_for(self.ids.len(), engine), Vec::new());
        let slots = &mut self.ids[engine];
        slots.resize(len_for(slots.len(), id.slot()), Vec::new());
        let generations = &mut slots[id.slot()];
        generations.resize(len_for(generations.len(), id.generation() as usize), None);
        match generations[id.generation() as usize].replace(conn) {
            None => Ok(conn),
            Some(_) => Err(format!("{id} was handed out twice")),
        }
    }

    /// The connection that an event belongs to.
    pub fn find(&self, engine: usize, id: ConnId) -> Result<usize, String> {
        let generations = self.ids.get(engine).and_then(|slots| slots.get(id.slot()));
        let conn = generations.and_then(|generations| *generations.get(id.generation() as usize)?);
        let conn = conn.ok_or_else(|| format!("an event of {id}, which was never handed out"))?;
        match self.conns[conn].closed {
            None => Ok(conn),
            Some(reason) => Err(format!("an event of {id} after its end ({reason})")),
        }
    }

    /// The bytes of a stream at an offset: its head, its pattern, and how many bytes of the one in
    /// question are valid, at most `len`.
    fn content(
        &self,
        stream: usize,
        at: u64,
        len: usize,
    ) -> ([u8; HEAD as usize], &'static [u8], usize) {
        let stream = self.streams[stream].echo_of.unwrap_or(stream);
        let head = (stream as u32).to_le_bytes();
        let body = pattern(stream, at);
        let from = at.min(HEAD) as usize;
        let len = if from < head.len() { len.min(head.len() - from) } else { len.min(body.len()) };
        (head, body, len)
    }

    /// Visits `len` bytes of a stream from an offset on, piece by piece.
    fn for_each_piece(
        &self,
        stream: usize,
        mut at: u64,
        mut len: usize,
        mut visit: impl FnMut(u64, &[u8]),
    ) {
        while len > 0 {
            let (head, body, piece) = self.content(stream, at, len);
            match at < HEAD {
                true => visit(at, &head[at as usize..at as usize + piece]),
                false => visit(at, &body[..piece]),
            }
            at += piece as u64;
            len -= piece;
        }
    }

    /// The next bytes that a connection sends.
    pub fn next_bytes(&self, conn: usize, len: usize) -> Vec<u8> {
        let stream = self.conns[conn].stream;
        let at = self.streams[stream].written;
        let mut bytes = Vec::with_capacity(len);
        self.for_each_piece(stream, at, len, |_, piece| bytes.extend_from_slice(piece));
        bytes
    }

    pub fn sent(&mut self, conn: usize, len: usize) {
        let stream = self.conns[conn].stream;
        self.streams[stream].written += len as u64;
        self.conns[conn].sent_since_poll = true;
    }

    /// Makes a new server end an echoing one.
    pub fn make_echo(&mut self, conn: usize) {
        self.conns[conn].echo = true;
    }

    pub fn connected(&mut self, conn: usize) -> Result<(), String> {
        let conn = &mut self.conns[conn];
        if std::mem::replace(&mut conn.connected, true) {
            return Err(format!("{} connected twice", conn.id));
        }
        Ok(())
    }

    /// `Received`.
    pub fn received(&mut self, conn: usize, bytes: &[u8]) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        if end.paused {
            end.received_while_paused = true;
        }
        if end.short_fill {
            return Err(format!("{id} received after a buffer came back short"));
        }
        if bytes.is_empty() {
            return Err(format!("{id} received no bytes"));
        }
        self.receive(conn, bytes)
    }

    /// `Filled`.
    pub fn filled(&mut self, conn: usize, bytes: &[u8]) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        let wanted = end
            .fills_pending
            .pop_front()
            .ok_or_else(|| format!("{id} filled a buffer without a call of recv_into"))?;
        if bytes.len() > wanted {
            return Err(format!("{id} filled {} bytes where {wanted} were asked for", bytes.len()));
        }
        end.short_fill = bytes.len() < wanted;
        self.receive(conn, bytes)
    }

    fn receive(&mut self, conn: usize, bytes: &[u8]) -> Result<(), String> {
        let id = self.conns[conn].id;
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.conns[conn].connected || self.conns[conn].fin_received {
            return Err(format!("{id} received before `Connected` or after `ReadClosed`"));
        }
        let mut rest = bytes;
        while self.conns[conn].source.is_none() {
            let Some((first, tail)) = rest.split_first() else { return Ok(()) };
            self.conns[conn].head.push(*first);
            rest = tail;
            if self.conns[conn].head.len() == HEAD as usize {
                self.identify(conn)?;
            }
        }
        let source = self.conns[conn].source.expect("the loop ends with a source or returns");
        let start = self.streams[source].received;
        let mut wrong = None;
        self.for_each_piece(source, start, rest.len(), |at, piece| {
            let got = &rest[(at - start) as usize..][..piece.len()];
            if got != piece {
                wrong = wrong.or(Some(at));
            }
        });
        if let Some(at) = wrong {
            return Err(format!("{id} received a wrong byte near {at} of stream {source}"));
        }
        let at = start + rest.len() as u64;
        if at > self.streams[source].written {
            return Err(format!(
                "{id} received {at} bytes of {} sent",
                self.streams[source].written
            ));
        }
        self.streams[source].received = at;
        Ok(())
    }

    /// Finds the sender by the first bytes.
    fn identify(&mut self, conn: usize) -> Result<(), String> {
        let id = self.conns[conn].id;
        let head: [u8; 4] = self.conns[conn].head[..].try_into().expect("four bytes");
        let stream = u32::from_le_bytes(head) as usize;
        let owner = self.streams.get(stream).map(|stream| stream.owner);
        let owner = owner
            .ok_or_else(|| format!("{id} received the head of an unknown stream: {head:?}"))?;
        // Its own bytes come back from an echoing end.
        let (peer, source) = match owner == conn {
            true => {
                let peer = self.conns[conn]
                    .peer
                    .ok_or_else(|| format!("{id} received its own bytes from an unknown peer"))?;
                (peer, self.conns[peer].stream)
            }
            false => (owner, stream),
        };
        if self.conns[peer].server == self.conns[conn].server {
            return Err(format!("{id} received the bytes of an end of the same side"));
        }
        for (end, other) in [(conn, peer), (peer, conn)] {
            if *self.conns[end].peer.get_or_insert(other) != other {
                return Err(format!("{id} received the bytes of another connection"));
            }
        }
        if self.conns[conn].echo {
            self.streams[self.conns[conn].stream].echo_of = Some(stream);
        }
        self.streams[source].received = HEAD;
        self.conns[conn].source = Some(source);
        Ok(())
    }

    pub fn read_closed(&mut self, conn: usize) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        if !end.connected || std::mem::replace(&mut end.fin_received, true) {
            return Err(format!("{id}: `ReadClosed` before `Connected`, or twice"));
        }
        if !end.fills_pending.is_empty() {
            return Err(format!("{id}: `ReadClosed` before the last `Filled`"));
        }
        // A buffer that came back short has reported the end already.
        if end.paused && !end.short_fill {
            end.received_while_paused = true;
        }
        let (Some(source), Some(peer)) = (end.source, end.peer) else { return Ok(()) };
        let (stream, sender) = (&self.streams[source], &self.conns[peer]);
        // Unix sockets have no reset.
        let closed_early = sender.abort_called
            || sender.close_called
            || sender.close_all_called
            || sender.has_idle_timeout;
        let may_be_cut = sender.crashed || sender.unix && (closed_early || sender.closes_with_peer);
        if stream.received != stream.written && !may_be_cut {
            let what = format!(
                "{id}: a stream cut to {} of {} bytes looks complete",
                stream.received, stream.written
            );
            return Err(format!("{what}; its sender: {sender:?}"));
        }
        Ok(())
    }

    /// `HungUp`: at most once, and only if the peer has done something that ends the stream. With
    /// `resets` the network resets connections too.
    pub fn hung_up(&mut self, conn: usize, resets: bool) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        if !end.connected || std::mem::replace(&mut end.hung_up, true) {
            return Err(format!("{id}: `HungUp` before `Connected`, or twice"));
        }
        let Some(sender) = end.peer.map(|peer| &self.conns[peer]) else { return Ok(()) };
        let closes = sender.close_called
            || sender.abort_called
            || sender.close_all_called
            || sender.shutdown_write_called;
        if !resets
            && !closes
            && !sender.has_idle_timeout
            && !sender.closes_with_peer
            && !sender.crashed
        {
            return Err(format!("{id}: `HungUp` of an open peer: {sender:?}"));
        }
        Ok(())
    }

    pub fn sent_tag(&mut self, conn: usize, tag: u64) -> Result<(), String> {
        let end = &mut self.conns[conn];
        match end.tags.pop_front() {
            Some(first) if first == tag => Ok(()),
            first => Err(format!("{}: `Sent` with tag {tag}, expected {first:?}", end.id)),
        }
    }

    pub fn resumed(&mut self, conn: usize) {
        let end = &mut self.conns[conn];
        end.paused = false;
    }

    /// At rest: a connection that is open on both ends has received everything.
    pub fn check_settled(&self, conn: usize) -> Result<(), String> {
        let end = &self.conns[conn];
        if end.received_while_paused {
            return Err(format!("{}: received while paused, and did not end", end.id));
        }
        let (Some(source), Some(peer)) = (end.source, end.peer) else { return Ok(()) };
        let (stream, sender) = (&self.streams[source], &self.conns[peer]);
        let open = |end: &Conn| {
            end.connected
                && end.closed.is_none()
                && !end.crashed
                && !end.close_called
                && !end.abort_called
                && !end.closes_with_peer
        };
        // An echoing end that has shut its write side down waits for room without end.
        if !open(end)
            || !open(sender)
            || end.echo && end.shutdown_write_called
            || end.paused
            || !end.fills_pending.is_empty()
        {
            return Ok(());
        }
        if stream.received < stream.written {
            let what = format!(
                "{}: received {} of {} bytes, and no more come",
                end.id, stream.received, stream.written
            );
            return Err(format!("{what}; {end:?}"));
        }
        match sender.shutdown_write_called && !end.fin_received {
            true => Err(format!("{}: the end of the stream never came; {end:?}", end.id)),
            false => Ok(()),
        }
    }

    pub fn closed(&mut self, conn: usize, reason: CloseReason) -> Result<(), String> {
        let stream = self.conns[conn].stream;
        let (written, end) = (self.streams[stream].written, &mut self.conns[conn]);
        let id = end.id;
        if !end.fills_pending.is_empty() {
            return Err(format!("{id}: `Closed` before the last `Filled`"));
        }
        if reason.unsent_bytes > written {
            return Err(format!("{id}: {} bytes unsent of {written}", reason.unsent_bytes));
        }
        let opening = !end.connected;
        let possible = match reason.kind {
            CloseKind::Refused
            | CloseKind::Unreachable
            | CloseKind::ConnectTimedOut
            | CloseKind::ConnectFailed => opening,
            CloseKind::PeerClosed => {
                end.fin_received
                    || end.paused
                    || end.shutdown_write_called
                    || end.close_called
                    || end.close_all_called
            }
            CloseKind::Reset => !opening,
            CloseKind::Local => end.close_called,
            CloseKind::Aborted => end.abort_called,
            CloseKind::IdleTimedOut => end.has_idle_timeout && !opening,
            CloseKind::LingerTimedOut => {
                end.close_called || end.close_all_called || end.closes_with_peer
            }
            CloseKind::Shutdown => end.close_all_called,
            _ => false,
        };
        if !possible {
            return Err(format!("{id} cannot have ended like this: {reason}; {end:?}"));
        }
        if end.received_while_paused
            && matches!(reason.kind, CloseKind::Local | CloseKind::Aborted | CloseKind::Shutdown)
        {
            return Err(format!(
                "{id}: received while paused, and ended only by a call ({reason})"
            ));
        }
        let in_order =
            matches!(reason.kind, CloseKind::Local | CloseKind::Shutdown | CloseKind::PeerClosed);
        if in_order && reason.unsent_bytes == 0 && !end.tags.is_empty() {
            return Err(format!("{id}: all was sent, but {} `Sent` are missing", end.tags.len()));
        }
        end.closed = Some(reason);
        Ok(())
    }

    /// How many bytes an engine has handed to its kernel, computed from the sends that it accepted
    /// and the unsent bytes that it reported.
    pub fn bytes_sent(&self, engine: usize) -> u64 {
        self.conns
            .iter()
            .filter(|conn| conn.engine == engine)
            .map(|conn| {
                self.streams[conn.stream].written
                    - conn.closed.map_or(0, |reason| reason.unsent_bytes)
            })
            .sum()
    }
}
