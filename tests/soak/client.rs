//! All clients of the soak test, on one engine. Owns: who is connected, the bytes that each must
//! receive, and the counts. Must not know the server, except its address.

use crate::actor::{Client, Kind};
use crate::server::Sample;
use bytes::Bytes;
use proactor::{Completion, Completions, ConnId, ConnectOptions, Engine, Event, SendError};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// The pattern repeats after a prime number of bytes, so that a lost or repeated block changes the
/// stream.
const PERIOD: usize = 65_521;
const MESSAGE_MAX: usize = 1 << 16;

pub struct Clients {
    engine: Engine,
    completions: Completions,
    addr: SocketAddr,
    pattern: Bytes,
    /// Of the random numbers (xorshift64).
    state: u64,
    clients: Vec<Option<(ConnId, Client)>>,
    /// Whether a client that has ended is replaced by a new one.
    refill: bool,
    /// How many clients were started.
    started: u32,
    ended: BTreeMap<Kind, u64>,
    bytes: u64,
    /// The first error of a client.
    error: Option<String>,
}

impl Clients {
    pub fn new(engine: Engine, addr: SocketAddr, seed: u64) -> Clients {
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let period: Vec<u8> = (0..PERIOD).map(|_| byte()).collect();
        let pattern: Vec<u8> = period.iter().copied().cycle().take(PERIOD + MESSAGE_MAX).collect();
        Clients {
            engine,
            completions: Completions::with_capacity(1024),
            addr,
            pattern: pattern.into(),
            state: seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15),
            clients: Vec::new(),
            refill: false,
            started: 0,
            ended: BTreeMap::new(),
            bytes: 0,
            error: None,
        }
    }

    /// Runs one round: keeps `count` clients for the time of the round, then lets all end. Returns
    /// a sample of the server from the middle of the round.
    pub fn run(
        &mut self,
        round: Duration,
        count: usize,
        mut sample: impl FnMut() -> Sample,
    ) -> Result<Sample, String> {
        let end = Instant::now() + round;
        let mut busy = None;
        self.refill = true;
        self.clients.resize_with(count, || None);
        (0..count).for_each(|index| self.start_client(index));
        while Instant::now() < end {
            self.poll(end)?;
            if busy.is_none() && end.saturating_duration_since(Instant::now()) < round / 2 {
                busy = Some(sample());
            }
        }
        self.refill = false;
        self.end_staying_clients();
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.engine.connections() > 0 {
            if Instant::now() > deadline {
                let open: Vec<Kind> =
                    self.clients.iter().flatten().map(|(_, client)| client.kind).collect();
                return Err(format!("clients that never end: {open:?}"));
            }
            self.poll(deadline)?;
        }
        Ok(busy.unwrap_or_else(sample))
    }

    /// How much the clients have done.
    pub fn report(&self) -> String {
        let ended: u64 = self.ended.values().sum();
        format!("{ended} clients, {} MiB verified", self.bytes >> 20)
    }

    /// Checks that a client of each kind has ended.
    pub fn check_all_kinds_ended(&self) -> Result<(), String> {
        let missing = Kind::DISTRIBUTION.iter().find(|kind| !self.ended.contains_key(kind));
        missing.map_or(Ok(()), |kind| {
            Err(format!("no {kind:?} ended; the test was too short: {:?}", self.ended))
        })
    }

    fn random(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % below
    }

    /// Connects a new client.
    fn start_client(&mut self, index: usize) {
        let kind = Kind::DISTRIBUTION[self.random(Kind::DISTRIBUTION.len())];
        let goal = match kind {
            Kind::Trickler => 1 + self.random(100),
            Kind::HalfCloser | Kind::Sleeper => 1 + self.random(400_000),
            Kind::Silent => 0,
            Kind::Flooder => usize::MAX,
            _ => 1 + self.random(200_000),
        };
        let (window, message) = match kind {
            Kind::Trickler => (1, 1),
            Kind::Talker | Kind::Resetter => (1 + self.random(60_000), 1 + self.random(16_000)),
            _ => (usize::MAX, MESSAGE_MAX),
        };
        self.started = self.started.wrapping_add(1);
        let offset = self.random(PERIOD);
        let number = self.started;
        let client = Client { kind, goal, sent: 0, received: 0, offset, window, message, number };
        // Many source addresses: the test opens more connections than one address has ports.
        let local = Ipv4Addr::new(
            127,
            self.random(250) as u8,
            self.random(250) as u8,
            1 + self.random(250) as u8,
        );
        let local = Some(SocketAddr::new(IpAddr::V4(local), 0));
        let options = ConnectOptions { local, tag: index as u64, ..ConnectOptions::default() };
        let conn =
            self.engine.connect(self.addr, options).expect("an address and room for one more");
        self.clients[index] = Some((conn, client));
        if kind == Kind::Leaver {
            let variant = self.random(3);
            if variant > 0 {
                self.send(index);
            }
            let _ = if variant == 2 { self.engine.close(conn) } else { self.engine.abort(conn) };
        }
    }

    fn poll(&mut self, until: Instant) -> Result<(), String> {
        let timeout =
            until.saturating_duration_since(Instant::now()).min(Duration::from_millis(100));
        self.engine
            .poll(&mut self.completions, Some(timeout))
            .map_err(|error| error.to_string())?;
        while let Some(completion) = self.completions.pop() {
            self.handle(completion);
        }
        self.error.take().map_or(Ok(()), Err)
    }

    fn handle(&mut self, completion: Completion) {
        let index = completion.tag as usize;
        match completion.event {
            Event::Timer { .. } => self.timer_fired(completion.tag),
            Event::Connected => self.connected(index),
            Event::Received(data) => self.received(index, &data),
            Event::Drained => self.send(index),
            Event::ReadClosed => drop(self.engine.close(completion.conn)),
            Event::Closed(reason) => {
                let (_, client) = self.clients[index].take().expect("each connection ends once");
                *self.ended.entry(client.kind).or_default() += 1;
                if let Some(what) = client.wrong_end(reason.kind) {
                    self.error.get_or_insert(format!("{what} ({reason})"));
                }
                if self.refill {
                    self.start_client(index);
                }
            }
            _ => {}
        }
    }

    fn connected(&mut self, index: usize) {
        let Some((conn, client)) = &self.clients[index] else { return };
        let (conn, kind, tag) = (*conn, client.kind, u64::from(client.number) << 32 | index as u64);
        if matches!(kind, Kind::Sleeper | Kind::Flooder) {
            let _ = self.engine.pause_reads(conn);
        }
        let pause_ms = match kind {
            Kind::Sleeper => Some(1 + self.random(200)),
            Kind::Flooder | Kind::Silent => Some(1 + self.random(3_000)),
            _ => None,
        };
        if let Some(ms) = pause_ms {
            self.engine
                .timer_after(Duration::from_millis(ms as u64), tag)
                .expect("one timer per client");
        }
        self.send(index);
    }

    /// Sends as much as the window and the send queue allow.
    fn send(&mut self, index: usize) {
        let Some((conn, client)) = &mut self.clients[index] else { return };
        while client.sent < client.goal {
            let len = client.next_message();
            if len == 0 {
                return;
            }
            let start = (client.offset + client.sent) % PERIOD;
            match self.engine.send(*conn, self.pattern.slice(start..start + len)) {
                Ok(()) => client.sent += len,
                // `Drained` or `Closed` follows.
                Err(SendError::Full(_) | SendError::Closed(_)) => return,
                Err(error) => {
                    self.error.get_or_insert(error.to_string());
                    return;
                }
            }
        }
        if matches!(client.kind, Kind::HalfCloser | Kind::Sleeper) {
            let _ = self.engine.shutdown_write(*conn);
        }
    }

    /// Checks the echo.
    fn received(&mut self, index: usize, data: &[u8]) {
        let Some((conn, client)) = &mut self.clients[index] else { return };
        let conn = *conn;
        for chunk in data.chunks(MESSAGE_MAX) {
            let start = (client.offset + client.received) % PERIOD;
            if *chunk != self.pattern[start..start + chunk.len()] {
                let what = format!("{:?}: wrong bytes near {}", client.kind, client.received);
                self.error.get_or_insert(what);
            }
            client.received += chunk.len();
        }
        self.bytes += data.len() as u64;
        match client.kind {
            Kind::Resetter if client.received > client.goal / 2 => drop(self.engine.abort(conn)),
            Kind::Talker | Kind::Trickler if client.is_finished() => drop(self.engine.close(conn)),
            _ => self.send(index),
        }
    }

    /// The timer of a client fired. The client may have ended since.
    fn timer_fired(&mut self, tag: u64) {
        let (number, index) = ((tag >> 32) as u32, tag as u32 as usize);
        let Some((conn, client)) =
            self.clients[index].as_ref().filter(|(_, client)| client.number == number)
        else {
            return;
        };
        let _ = match client.kind {
            Kind::Sleeper => self.engine.resume_reads(*conn),
            Kind::Silent => self.engine.close(*conn),
            _ => self.engine.abort(*conn),
        };
    }

    /// Ends the clients that would stay.
    fn end_staying_clients(&mut self) {
        for (conn, client) in self.clients.iter().flatten() {
            if client.kind.stays() {
                let _ = if client.kind == Kind::Silent {
                    self.engine.close(*conn)
                } else {
                    self.engine.abort(*conn)
                };
            }
        }
    }
}
