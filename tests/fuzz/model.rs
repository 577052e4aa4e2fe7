//! What may happen. Owns: what each connection was given to send, and what it was told so far.
//! Every byte arrives once and in order, or the connection ends with a reason; each connection ends
//! once. Everything else is an error, in words.

use super::Rng;
use proactor::{CloseKind, CloseReason, ConnId};
use std::collections::VecDeque;
use std::sync::OnceLock;

/// The bytes that one end of a connection sends: its number, then a pattern that depends on number
/// and place. A mirror sends what it received.
#[derive(Debug)]
pub struct Stream {
    owner: usize,
    pub written: u64,
    received: u64,
    mirrors: Option<usize>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Conn {
    pub engine: usize,
    pub id: ConnId,
    pub stream: usize,
    /// The stream that comes in, once its number has arrived.
    source: Option<usize>,
    head: Vec<u8>,
    peer: Option<usize>,
    pub server: bool,
    pub unix: bool,
    pub mirror: bool,
    pub connected: bool,
    fin: bool,
    pub paused: bool,
    pub hung_up: bool,
    /// Told something while paused: only the end may follow.
    last_words: bool,
    /// Buffers to fill that have not come back: the next one can be given before the last one is
    /// told.
    pub filling: VecDeque<usize>,
    /// The fill came back short: only the end may follow.
    ended_fill: bool,
    pub tags: VecDeque<u64>,
    /// A send was refused, and no `Drained` was told since.
    pub refused: bool,
    /// Something was sent since the poll that is being looked at.
    pub sent_since: bool,
    pub close_called: bool,
    pub abort_called: bool,
    pub shut_called: bool,
    pub close_all_called: bool,
    pub closes_with_peer: bool,
    pub has_idle_timeout: bool,
    /// Its engine is gone without an end.
    pub lost: bool,
    pub closed: Option<CloseReason>,
}

#[derive(Debug, Default)]
pub struct Model {
    pub streams: Vec<Stream>,
    pub conns: Vec<Conn>,
    /// By engine, slot and generation.
    ids: Vec<Vec<Vec<Option<usize>>>>,
}

const HEAD: u64 = 4;

/// Bytes that repeat only after this many, each stream from another place on.
const PERIOD: usize = 65_521;

/// The bytes of a stream from a place on, up to where they have to be asked for again.
fn pattern(stream: usize, at: u64) -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut rng = Rng::new(0);
        (0..PERIOD).map(|_| rng.next() as u8).collect()
    });
    &table[(stream * 7_919 + at as usize) % PERIOD..]
}

impl Model {
    /// Adds one end of a connection. Engine indices count incarnations too, so ids never mix.
    pub fn add(&mut self, engine: usize, id: ConnId, server: bool) -> Result<usize, String> {
        let (conn, stream) = (self.conns.len(), self.streams.len());
        self.streams.push(Stream { owner: conn, written: 0, received: 0, mirrors: None });
        self.conns.push(Conn {
            engine,
            id,
            stream,
            source: None,
            head: Vec::new(),
            peer: None,
            server,
            unix: false,
            mirror: false,
            connected: server,
            fin: false,
            paused: false,
            hung_up: false,
            last_words: false,
            filling: VecDeque::new(),
            ended_fill: false,
            tags: VecDeque::new(),
            refused: false,
            sent_since: false,
            close_called: false,
            abort_called: false,
            shut_called: false,
            close_all_called: false,
            closes_with_peer: false,
            has_idle_timeout: false,
            lost: false,
            closed: None,
        });
        let grown = |length: usize, index: usize| length.max(index + 1);
        self.ids.resize(grown(self.ids.len(), engine), Vec::new());
        let slots = &mut self.ids[engine];
        slots.resize(grown(slots.len(), id.slot()), Vec::new());
        let generations = &mut slots[id.slot()];
        generations.resize(grown(generations.len(), id.generation() as usize), None);
        match generations[id.generation() as usize].replace(conn) {
            None => Ok(conn),
            Some(_) => Err(format!("{id} was handed out twice")),
        }
    }

    /// The connection that an event is about.
    pub fn find(&self, engine: usize, id: ConnId) -> Result<usize, String> {
        let generations = self.ids.get(engine).and_then(|slots| slots.get(id.slot()));
        let conn = generations.and_then(|generations| *generations.get(id.generation() as usize)?);
        let conn = conn.ok_or_else(|| format!("an event of {id}, which was never handed out"))?;
        match self.conns[conn].closed {
            None => Ok(conn),
            Some(reason) => Err(format!("an event of {id} after its end ({reason})")),
        }
    }

    /// What a stream has at a place, at most `len` bytes of it.
    fn content(
        &self,
        stream: usize,
        at: u64,
        len: usize,
    ) -> ([u8; HEAD as usize], &'static [u8], usize) {
        let stream = self.streams[stream].mirrors.unwrap_or(stream);
        let head = (stream as u32).to_le_bytes();
        let body = pattern(stream, at);
        let from = at.min(HEAD) as usize;
        let len = if from < head.len() { len.min(head.len() - from) } else { len.min(body.len()) };
        (head, body, len)
    }

    /// Goes over what a stream has from a place on, piece by piece.
    fn pieces(&self, stream: usize, mut at: u64, mut len: usize, mut look: impl FnMut(u64, &[u8])) {
        while len > 0 {
            let (head, body, piece) = self.content(stream, at, len);
            match at < HEAD {
                true => look(at, &head[at as usize..at as usize + piece]),
                false => look(at, &body[..piece]),
            }
            at += piece as u64;
            len -= piece;
        }
    }

    /// The next bytes that a connection has to send.
    pub fn next_bytes(&self, conn: usize, len: usize) -> Vec<u8> {
        let stream = self.conns[conn].stream;
        let at = self.streams[stream].written;
        let mut bytes = Vec::with_capacity(len);
        self.pieces(stream, at, len, |_, piece| bytes.extend_from_slice(piece));
        bytes
    }

    pub fn sent(&mut self, conn: usize, len: usize) {
        let stream = self.conns[conn].stream;
        self.streams[stream].written += len as u64;
        self.conns[conn].sent_since = true;
    }

    /// Makes a fresh server end one that sends back what it receives.
    pub fn make_mirror(&mut self, conn: usize) {
        self.conns[conn].mirror = true;
    }

    pub fn connected(&mut self, conn: usize) -> Result<(), String> {
        let conn = &mut self.conns[conn];
        if std::mem::replace(&mut conn.connected, true) {
            return Err(format!("{} connected twice", conn.id));
        }
        Ok(())
    }

    /// Bytes arrived by stream.
    pub fn received(&mut self, conn: usize, bytes: &[u8]) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        if end.paused {
            end.last_words = true;
        }
        if end.ended_fill {
            return Err(format!("{id} received after a buffer came back short"));
        }
        if bytes.is_empty() {
            return Err(format!("{id} received no bytes"));
        }
        self.take(conn, bytes)
    }

    /// A caller's buffer came back.
    pub fn filled(&mut self, conn: usize, bytes: &[u8]) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        let wanted = end
            .filling
            .pop_front()
            .ok_or_else(|| format!("{id} filled a buffer that nobody gave it"))?;
        if bytes.len() > wanted {
            return Err(format!("{id} filled {} bytes into room for {wanted}", bytes.len()));
        }
        end.ended_fill = bytes.len() < wanted;
        self.take(conn, bytes)
    }

    fn take(&mut self, conn: usize, bytes: &[u8]) -> Result<(), String> {
        let id = self.conns[conn].id;
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.conns[conn].connected || self.conns[conn].fin {
            return Err(format!("{id} received before its beginning or after its stream's end"));
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
        let source = self.conns[conn].source.expect("known by now");
        let start = self.streams[source].received;
        let mut wrong = None;
        self.pieces(source, start, rest.len(), |at, piece| {
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

    /// The first bytes say whose they are.
    fn identify(&mut self, conn: usize) -> Result<(), String> {
        let id = self.conns[conn].id;
        let head: [u8; 4] = self.conns[conn].head[..].try_into().expect("four bytes");
        let stream = u32::from_le_bytes(head) as usize;
        let owner = self.streams.get(stream).map(|stream| stream.owner);
        let owner =
            owner.ok_or_else(|| format!("{id} received the head of no stream: {head:?}"))?;
        // One's own bytes come back from a mirror.
        let (peer, source) = match owner == conn {
            true => {
                let peer = self.conns[conn]
                    .peer
                    .ok_or_else(|| format!("{id} received its own bytes from nobody"))?;
                (peer, self.conns[peer].stream)
            }
            false => (owner, stream),
        };
        if self.conns[peer].server == self.conns[conn].server {
            return Err(format!("{id} received what another end of the same side sent"));
        }
        for (end, other) in [(conn, peer), (peer, conn)] {
            if *self.conns[end].peer.get_or_insert(other) != other {
                return Err(format!("{id} received the bytes of another connection"));
            }
        }
        if self.conns[conn].mirror {
            self.streams[self.conns[conn].stream].mirrors = Some(stream);
        }
        self.streams[source].received = HEAD;
        self.conns[conn].source = Some(source);
        Ok(())
    }

    pub fn read_closed(&mut self, conn: usize) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        if !end.connected || std::mem::replace(&mut end.fin, true) {
            return Err(format!("{id}: the end of its stream before its beginning, or twice"));
        }
        if !end.filling.is_empty() {
            return Err(format!("{id}: the end of its stream before the buffer to fill came back"));
        }
        // A buffer that came back short has told the end already.
        if end.paused && !end.ended_fill {
            end.last_words = true;
        }
        let (Some(source), Some(peer)) = (end.source, end.peer) else { return Ok(()) };
        let (stream, sender) = (&self.streams[source], &self.conns[peer]);
        // A unix socket knows no reset.
        let gave_up = sender.abort_called
            || sender.close_called
            || sender.close_all_called
            || sender.has_idle_timeout;
        let may_be_cut = sender.lost || sender.unix && (gave_up || sender.closes_with_peer);
        if stream.received != stream.written && !may_be_cut {
            let what = format!(
                "{id}: a stream cut to {} of {} bytes looks complete",
                stream.received, stream.written
            );
            return Err(format!("{what}; its sender: {sender:?}"));
        }
        Ok(())
    }

    /// Told at most once, and only of a peer that has done something to end the stream, unless the
    /// network resets too.
    pub fn hung_up(&mut self, conn: usize, resets: bool) -> Result<(), String> {
        let end = &mut self.conns[conn];
        let id = end.id;
        if !end.connected || std::mem::replace(&mut end.hung_up, true) {
            return Err(format!("{id}: a hang-up before the beginning, or twice"));
        }
        let Some(sender) = end.peer.map(|peer| &self.conns[peer]) else { return Ok(()) };
        let closes = sender.close_called
            || sender.abort_called
            || sender.close_all_called
            || sender.shut_called;
        if !resets
            && !closes
            && !sender.has_idle_timeout
            && !sender.closes_with_peer
            && !sender.lost
        {
            return Err(format!("{id}: a hang-up of a peer that is there: {sender:?}"));
        }
        Ok(())
    }

    pub fn sent_tag(&mut self, conn: usize, tag: u64) -> Result<(), String> {
        let end = &mut self.conns[conn];
        match end.tags.pop_front() {
            Some(first) if first == tag => Ok(()),
            first => Err(format!("{}: send {tag} was told done, {first:?} was next", end.id)),
        }
    }

    pub fn resumed(&mut self, conn: usize) {
        let end = &mut self.conns[conn];
        end.paused = false;
    }

    /// When all is quiet: a connection that is still open owes nothing.
    pub fn settled(&self, conn: usize) -> Result<(), String> {
        let end = &self.conns[conn];
        if end.last_words {
            return Err(format!("{}: received while paused, and did not end", end.id));
        }
        let (Some(source), Some(peer)) = (end.source, end.peer) else { return Ok(()) };
        let (stream, sender) = (&self.streams[source], &self.conns[peer]);
        let open = |end: &Conn| {
            end.connected
                && end.closed.is_none()
                && !end.lost
                && !end.close_called
                && !end.abort_called
                && !end.closes_with_peer
        };
        // A mirror that may not send waits for room in vain.
        if !open(end)
            || !open(sender)
            || end.mirror && end.shut_called
            || end.paused
            || !end.filling.is_empty()
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
        match sender.shut_called && !end.fin {
            true => Err(format!("{}: the end of the stream never came; {end:?}", end.id)),
            false => Ok(()),
        }
    }

    pub fn closed(&mut self, conn: usize, reason: CloseReason) -> Result<(), String> {
        let stream = self.conns[conn].stream;
        let (written, end) = (self.streams[stream].written, &mut self.conns[conn]);
        let id = end.id;
        if !end.filling.is_empty() {
            return Err(format!("{id} ended, and a buffer to fill never came back"));
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
                end.fin || end.paused || end.shut_called || end.close_called || end.close_all_called
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
        if end.last_words
            && matches!(reason.kind, CloseKind::Local | CloseKind::Aborted | CloseKind::Shutdown)
        {
            return Err(format!(
                "{id}: received while paused, and ended only when it was told to ({reason})"
            ));
        }
        let in_order =
            matches!(reason.kind, CloseKind::Local | CloseKind::Shutdown | CloseKind::PeerClosed);
        if in_order && reason.unsent_bytes == 0 && !end.tags.is_empty() {
            return Err(format!(
                "{id}: all was sent, but {} sends were never told done",
                end.tags.len()
            ));
        }
        end.closed = Some(reason);
        Ok(())
    }

    /// What an engine handed to its kernel in all, by what its connections were told.
    pub fn handed_over(&self, engine: usize) -> u64 {
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
