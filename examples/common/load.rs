//! The load generator without its command line. It verifies every byte that comes back.

use super::Failure;
use bytes::Bytes;
use hdrhistogram::Histogram;
use proactor::{
    Addr, CloseKind, CloseReason, Completion, Completions, ConnId, ConnectOptions, Engine, Event,
    SendError,
};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A number of requests in flight on each connection; a response makes room for the next
    Echo,
    /// Connect, send one request, close, start again
    Connect,
    /// Send as fast as the connection accepts
    Stream,
}

pub struct Plan {
    pub addr: Addr,
    pub conns: usize,
    pub size: usize,
    pub depth: usize,
    pub duration: Duration,
    pub mode: Mode,
    /// Requests per second over all connections, sent even if no response arrives (mode echo).
    pub rate: Option<f64>,
}

pub struct Outcome {
    pub requests: u64,
    pub elapsed: Duration,
    pub latency_us: Histogram<u64>,
    pub errors: u64,
    /// Requests that were due and had no response at the end. They are in `latency_us` with the
    /// time that they had waited.
    pub unanswered: u64,
    /// The text of the first error.
    pub first_error: Option<String>,
}

/// With a rate: the requests are due at multiples of an interval.
struct Schedule {
    interval: Duration,
    sent: u64,
}

/// Until a request is due within this time, the load polls without sleeping: a sleep would end too
/// late.
const SLEEP_MIN: Duration = Duration::from_millis(1);

/// The period of the bytes of all streams: a message at offset `o` has the pattern from `o %
/// PERIOD` on.
const PERIOD: usize = 65_521;

struct Client {
    conn: ConnId,
    sent: u64,
    received: u64,
    /// When each message in flight was sent, or with a rate, was due.
    starts: VecDeque<Instant>,
    open: bool,
    full: bool,
    /// With a rate: requests that are due and were refused by a full send queue.
    overdue: u64,
}

impl Client {
    fn new(conn: ConnId, starts: VecDeque<Instant>) -> Client {
        Client { conn, sent: 0, received: 0, starts, open: false, full: false, overdue: 0 }
    }
}

pub struct Load {
    plan: Plan,
    pattern: Bytes,
    clients: Vec<Client>,
    outcome: Outcome,
    schedule: Option<Schedule>,
    opened: u64,
    now: Instant,
    start: Instant,
}

impl Load {
    pub fn new(plan: Plan) -> Result<Load, Failure> {
        if plan.conns == 0 || plan.size == 0 || plan.depth == 0 {
            return Err("--conns, --size and --depth must be at least 1".into());
        }
        if plan.rate.is_some() && plan.mode != Mode::Echo {
            return Err("--rate is for mode echo".into());
        }
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let period: Vec<u8> = (0..PERIOD).map(|_| byte()).collect();
        let pattern: Vec<u8> =
            period.iter().copied().cycle().take(PERIOD + plan.size.max(1 << 20)).collect();
        let now = Instant::now();
        let outcome = Outcome {
            requests: 0,
            elapsed: Duration::ZERO,
            latency_us: Histogram::new_with_bounds(1, 60_000_000, 3)?,
            errors: 0,
            unanswered: 0,
            first_error: None,
        };
        let schedule = plan
            .rate
            .map(|rate| Schedule { interval: Duration::from_secs_f64(1.0 / rate), sent: 0 });
        Ok(Load {
            plan,
            pattern: pattern.into(),
            clients: Vec::new(),
            outcome,
            schedule,
            opened: 0,
            now,
            start: now,
        })
    }

    /// Runs the plan to its end. Every 100 ms it calls `progress` with the part of the time that
    /// has passed and the number of requests.
    pub fn run(
        mut self,
        engine: &mut Engine,
        mut progress: impl FnMut(f64, u64),
    ) -> Result<Outcome, Failure> {
        let mut completions = Completions::with_capacity(1024);
        for index in 0..self.plan.conns {
            self.clients.push(Client::new(ConnId::NONE, VecDeque::new()));
            self.connect(engine, index)?;
        }
        if self.schedule.is_some() {
            self.wait_until_open(engine, &mut completions)?;
        }
        self.start = Instant::now();
        let end = self.start + self.plan.duration;
        let mut reported = self.start;
        loop {
            self.now = Instant::now();
            if self.now >= end || self.clients.iter().all(|client| client.conn.is_none()) {
                break;
            }
            if self.now - reported > Duration::from_millis(100) {
                reported = self.now;
                progress(
                    (reported - self.start).as_secs_f64() / self.plan.duration.as_secs_f64(),
                    self.outcome.requests,
                );
            }
            let longest = (end - self.now).min(Duration::from_millis(100));
            let until_due = self.send_due(engine);
            engine.poll(
                &mut completions,
                Some(until_due.map_or(longest, |until_due| until_due.min(longest))),
            )?;
            self.now = Instant::now();
            for completion in completions.drain() {
                self.handle(engine, completion, true)?;
            }
        }
        self.outcome.elapsed = self.start.elapsed();
        self.record_unanswered(end);
        self.finish(engine, &mut completions)?;
        Ok(self.outcome)
    }

    /// With a rate, the time begins when all connections are open.
    fn wait_until_open(
        &mut self,
        engine: &mut Engine,
        completions: &mut Completions,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.clients.iter().any(|client| !client.open && !client.conn.is_none()) {
            if Instant::now() > deadline {
                return Err("not all connections were open after 30 s".into());
            }
            engine.poll(completions, Some(Duration::from_millis(100)))?;
            for completion in completions.drain() {
                self.handle(engine, completion, true)?;
            }
        }
        Ok(())
    }

    /// With a rate: sends what is due, on each connection in turn, even if earlier responses are
    /// missing. The latency of a request counts from when it was due, so that a stall of the server
    /// shows in all requests that it delayed. Returns the time until the next one is due.
    fn send_due(&mut self, engine: &mut Engine) -> Option<Duration> {
        let schedule = self.schedule.as_mut()?;
        let elapsed = self.now - self.start;
        let due = (elapsed.as_secs_f64() / schedule.interval.as_secs_f64()) as u64 + 1;
        let (first, interval) = (schedule.sent, schedule.interval);
        schedule.sent = schedule.sent.max(due);
        for number in first..due {
            let index = (number % self.clients.len() as u64) as usize;
            let client = &mut self.clients[index];
            client.starts.push_back(self.start + interval.mul_f64(number as f64));
            client.overdue += 1;
            self.send_overdue(engine, index);
        }
        let next = interval.mul_f64(due as f64);
        let wait = next.saturating_sub(elapsed);
        Some(if wait > SLEEP_MIN { wait - SLEEP_MIN / 2 } else { Duration::ZERO })
    }

    /// Sends what is due, as far as the send queue accepts it.
    fn send_overdue(&mut self, engine: &mut Engine, index: usize) {
        while self.clients[index].overdue > 0
            && self.clients[index].open
            && !self.clients[index].full
        {
            if !self.push_message(engine, index) {
                return;
            }
            self.clients[index].overdue -= 1;
        }
    }

    fn record_unanswered(&mut self, end: Instant) {
        if self.schedule.is_none() {
            return;
        }
        for start in self.clients.iter().flat_map(|client| &client.starts) {
            self.outcome.unanswered += 1;
            let waited = end.saturating_duration_since(*start).as_micros() as u64;
            self.outcome.latency_us.saturating_record(waited.max(1));
        }
    }

    /// At the end: aborts all connections. Responses that arrive now do not count.
    fn finish(
        &mut self,
        engine: &mut Engine,
        completions: &mut Completions,
    ) -> Result<(), Failure> {
        for client in self.clients.iter().filter(|client| !client.conn.is_none()) {
            let _ = engine.abort(client.conn);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while engine.connections() > 0 && Instant::now() < deadline {
            engine.poll(completions, Some(Duration::from_millis(50)))?;
            for completion in completions.drain() {
                self.handle(engine, completion, false)?;
            }
        }
        Ok(())
    }

    fn connect(&mut self, engine: &mut Engine, index: usize) -> Result<(), Failure> {
        let loopback =
            matches!(&self.plan.addr, Addr::Inet(SocketAddr::V4(addr)) if addr.ip().is_loopback());
        // A source address has about 28,000 ephemeral ports, and a closed connection holds one for
        // a minute in TIME_WAIT (tcp(7)). So every 16 connections use a new address of 127.0.0.0/8.
        let step = self.opened / 16;
        let local = Ipv4Addr::new(
            127,
            1 + (step / 64_000 % 200) as u8,
            (step / 250 % 256) as u8,
            (step % 250 + 1) as u8,
        );
        let spread = loopback && (self.plan.mode == Mode::Connect || self.plan.conns > 5000);
        let local = spread.then_some(SocketAddr::new(IpAddr::V4(local), 0));
        self.opened += 1;
        let options = ConnectOptions { local, tag: index as u64, ..ConnectOptions::default() };
        let conn = engine.connect(self.plan.addr.clone(), options)?;
        let client = &mut self.clients[index];
        let mut starts = std::mem::take(&mut client.starts);
        starts.clear();
        *client = Client::new(conn, starts);
        if self.plan.mode == Mode::Connect {
            // The engine sends the request as soon as the connection is open.
            self.push(engine, index);
        }
        Ok(())
    }

    fn handle(
        &mut self,
        engine: &mut Engine,
        completion: Completion,
        running: bool,
    ) -> Result<(), Failure> {
        let index = completion.tag as usize;
        match completion.event {
            Event::Connected => {
                self.clients[index].open = true;
                if running && self.plan.mode != Mode::Connect {
                    self.fill(engine, index);
                }
            }
            Event::Received(data) => self.received(engine, index, &data, running)?,
            Event::Drained => {
                self.clients[index].full = false;
                if running {
                    self.fill(engine, index);
                }
            }
            Event::Closed(reason) if completion.conn != self.clients[index].conn => {
                self.closed_after_response(index, reason, running);
            }
            Event::Closed(reason) => {
                let client = &mut self.clients[index];
                let expected = matches!(
                    reason.kind,
                    CloseKind::Local | CloseKind::Aborted | CloseKind::PeerClosed
                ) && (self.plan.mode == Mode::Connect && client.starts.is_empty()
                    || !running);
                client.conn = ConnId::NONE;
                if !expected && running {
                    self.record_error(format!("connection {index}: {reason}"));
                }
                // No more attempts if the server is not there.
                if running && self.plan.mode == Mode::Connect && self.outcome.errors < 1000 {
                    self.connect(engine, index)?;
                }
            }
            Event::ReadClosed if self.plan.mode != Mode::Connect => {
                drop(engine.close(completion.conn))
            }
            _ => {}
        }
        Ok(())
    }

    /// Mode connect: the end of a connection whose successor is open already.
    fn closed_after_response(&mut self, index: usize, reason: CloseReason, running: bool) {
        if running && reason.unsent_bytes > 0 {
            self.record_error(format!("connection {index}: {reason}"));
        }
    }

    fn received(
        &mut self,
        engine: &mut Engine,
        index: usize,
        data: &[u8],
        running: bool,
    ) -> Result<(), Failure> {
        let size = self.plan.size as u64;
        let client = &mut self.clients[index];
        let mut rest = data;
        while !rest.is_empty() {
            let at = (client.received % PERIOD as u64) as usize;
            let part = rest.len().min(self.pattern.len() - at);
            if rest[..part] != self.pattern[at..at + part] {
                let (conn, good) = (client.conn, client.received);
                let _ = engine.abort(conn);
                self.record_error(format!("connection {index}: wrong bytes after {good}"));
                return Ok(());
            }
            client.received += part as u64;
            rest = &rest[part..];
        }
        let complete = client.received / size;
        let before = (client.received - data.len() as u64) / size;
        for _ in before..complete {
            let Some(start) = client.starts.pop_front() else {
                self.record_error(format!(
                    "connection {index}: more bytes came back than were sent"
                ));
                return Ok(());
            };
            if running {
                self.outcome.requests += 1;
                let micros =
                    self.now.saturating_duration_since(start).as_nanos().div_ceil(1000) as u64;
                self.outcome.latency_us.saturating_record(micros.max(1));
            }
        }
        if !running || complete == before {
            return Ok(());
        }
        if self.plan.mode != Mode::Connect {
            self.fill(engine, index);
            return Ok(());
        }
        // Connect again without waiting for `Closed`.
        let _ = engine.close(self.clients[index].conn);
        self.connect(engine, index)
    }

    /// Sends until the plan's number of requests is in flight.
    fn fill(&mut self, engine: &mut Engine, index: usize) {
        if self.schedule.is_some() {
            return self.send_overdue(engine, index);
        }
        while self.clients[index].open && !self.clients[index].full {
            let in_flight = self.clients[index].starts.len();
            if self.plan.mode == Mode::Echo && in_flight >= self.plan.depth
                || !self.push(engine, index)
            {
                return;
            }
        }
    }

    fn push(&mut self, engine: &mut Engine, index: usize) -> bool {
        let sent = self.push_message(engine, index);
        if sent {
            self.clients[index].starts.push_back(self.now);
        }
        sent
    }

    fn push_message(&mut self, engine: &mut Engine, index: usize) -> bool {
        let client = &mut self.clients[index];
        let at = (client.sent % PERIOD as u64) as usize;
        match engine.send(client.conn, self.pattern.slice(at..at + self.plan.size)) {
            Ok(()) => {
                client.sent += self.plan.size as u64;
                true
            }
            Err(SendError::Full(_)) => {
                client.full = true;
                false
            }
            Err(_) => false,
        }
    }

    fn record_error(&mut self, what: String) {
        self.outcome.errors += 1;
        self.outcome.first_error.get_or_insert(what);
    }
}
