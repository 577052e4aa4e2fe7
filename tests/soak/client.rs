//! The clients of a soak, all on one engine. Owns: their lives, one after the other, and what they
//! saw.

use crate::actor::{Actor, Kind};
use crate::server::Sample;
use bytes::Bytes;
use proactor::{Completion, Completions, ConnId, ConnectOptions, Engine, Event, SendError};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// The pattern repeats after a prime number of bytes, so that a block lost or doubled shows.
const PERIOD: usize = 65_521;
const MESSAGE_MAX: usize = 1 << 16;

pub struct Crowd {
    engine: Engine,
    completions: Completions,
    addr: SocketAddr,
    pattern: Bytes,
    random: u64,
    actors: Vec<Option<(ConnId, Actor)>>,
    /// Whether who leaves is followed by another.
    refill: bool,
    lives: u32,
    ended: BTreeMap<Kind, u64>,
    bytes: u64,
    objection: Option<String>,
}

impl Crowd {
    pub fn new(engine: Engine, addr: SocketAddr, seed: u64) -> Crowd {
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let period: Vec<u8> = (0..PERIOD).map(|_| byte()).collect();
        let pattern: Vec<u8> = period.iter().copied().cycle().take(PERIOD + MESSAGE_MAX).collect();
        Crowd {
            engine,
            completions: Completions::with_capacity(1024),
            addr,
            pattern: pattern.into(),
            random: seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15),
            actors: Vec::new(),
            refill: false,
            lives: 0,
            ended: BTreeMap::new(),
            bytes: 0,
            objection: None,
        }
    }

    /// One round: so many clients for so long, each followed by another when it ends; then all end.
    /// Returns what `sample` saw when it was busiest.
    pub fn run(
        &mut self,
        round: Duration,
        clients: usize,
        mut sample: impl FnMut() -> Sample,
    ) -> Result<Sample, String> {
        let end = Instant::now() + round;
        let mut busiest = None;
        self.refill = true;
        self.actors.resize_with(clients, || None);
        (0..clients).for_each(|index| self.enter(index));
        while Instant::now() < end {
            self.poll(end)?;
            if busiest.is_none() && end.saturating_duration_since(Instant::now()) < round / 2 {
                busiest = Some(sample());
            }
        }
        self.refill = false;
        self.send_the_lingering_home();
        let patience = Instant::now() + Duration::from_secs(120);
        while self.engine.connections() > 0 {
            if Instant::now() > patience {
                let left: Vec<Kind> =
                    self.actors.iter().flatten().map(|(_, actor)| actor.kind).collect();
                return Err(format!("clients that never end: {left:?}"));
            }
            self.poll(patience)?;
        }
        Ok(busiest.unwrap_or_else(sample))
    }

    /// What they did so far.
    pub fn report(&self) -> String {
        let ended: u64 = self.ended.values().sum();
        format!("{ended} clients, {} MiB verified", self.bytes >> 20)
    }

    /// Each kind has been there.
    pub fn check_variety(&self) -> Result<(), String> {
        let missing = Kind::DRAW.iter().find(|kind| !self.ended.contains_key(kind));
        missing.map_or(Ok(()), |kind| {
            Err(format!("no {kind:?} ended; the soak was too short: {:?}", self.ended))
        })
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % below
    }

    /// A new client takes a place.
    fn enter(&mut self, index: usize) {
        let kind = Kind::DRAW[self.draw(Kind::DRAW.len())];
        let goal = match kind {
            Kind::Trickler => 1 + self.draw(100),
            Kind::HalfCloser | Kind::Sleeper => 1 + self.draw(400_000),
            Kind::Silent => 0,
            Kind::Flooder => usize::MAX,
            _ => 1 + self.draw(200_000),
        };
        let (window, message) = match kind {
            Kind::Trickler => (1, 1),
            Kind::Talker | Kind::Resetter => (1 + self.draw(60_000), 1 + self.draw(16_000)),
            _ => (usize::MAX, MESSAGE_MAX),
        };
        self.lives = self.lives.wrapping_add(1);
        let offset = self.draw(PERIOD);
        let actor =
            Actor { kind, goal, sent: 0, received: 0, offset, window, message, life: self.lives };
        // Spread over source addresses: a soak opens more connections than one has ports for.
        let local = Ipv4Addr::new(
            127,
            self.draw(250) as u8,
            self.draw(250) as u8,
            1 + self.draw(250) as u8,
        );
        let local = Some(SocketAddr::new(IpAddr::V4(local), 0));
        let options = ConnectOptions { local, tag: index as u64, ..ConnectOptions::default() };
        let conn =
            self.engine.connect(self.addr, options).expect("an address and room for one more");
        self.actors[index] = Some((conn, actor));
        if kind == Kind::Runner {
            let way = self.draw(3);
            if way > 0 {
                self.speak(index);
            }
            let _ = if way == 2 { self.engine.close(conn) } else { self.engine.abort(conn) };
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
        self.objection.take().map_or(Ok(()), Err)
    }

    fn handle(&mut self, completion: Completion) {
        let index = completion.tag as usize;
        match completion.event {
            Event::Timer { .. } => self.awake(completion.tag),
            Event::Connected => self.begin(index),
            Event::Received(data) => self.listen(index, &data),
            Event::Drained => self.speak(index),
            Event::ReadClosed => drop(self.engine.close(completion.conn)),
            Event::Closed(reason) => {
                let (_, actor) = self.actors[index].take().expect("one end each");
                *self.ended.entry(actor.kind).or_default() += 1;
                if let Some(what) = actor.objection(reason.kind) {
                    self.objection.get_or_insert(format!("{what} ({reason})"));
                }
                if self.refill {
                    self.enter(index);
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, index: usize) {
        let Some((conn, actor)) = &self.actors[index] else { return };
        let (conn, kind, tag) = (*conn, actor.kind, u64::from(actor.life) << 32 | index as u64);
        if matches!(kind, Kind::Sleeper | Kind::Flooder) {
            let _ = self.engine.pause_reads(conn);
        }
        let nap = match kind {
            Kind::Sleeper => Some(1 + self.draw(200)),
            Kind::Flooder | Kind::Silent => Some(1 + self.draw(3_000)),
            _ => None,
        };
        if let Some(ms) = nap {
            self.engine
                .timer_after(Duration::from_millis(ms as u64), tag)
                .expect("room for a timer each");
        }
        self.speak(index);
    }

    /// Sends what may be sent now.
    fn speak(&mut self, index: usize) {
        let Some((conn, actor)) = &mut self.actors[index] else { return };
        while actor.sent < actor.goal {
            let len = actor.next_message();
            if len == 0 {
                return;
            }
            let start = (actor.offset + actor.sent) % PERIOD;
            match self.engine.send(*conn, self.pattern.slice(start..start + len)) {
                Ok(()) => actor.sent += len,
                // Goes on with `Drained`; or its end is on the way.
                Err(SendError::Full(_) | SendError::Closed(_)) => return,
                Err(error) => {
                    self.objection.get_or_insert(error.to_string());
                    return;
                }
            }
        }
        if matches!(actor.kind, Kind::HalfCloser | Kind::Sleeper) {
            let _ = self.engine.shutdown_write(*conn);
        }
    }

    /// Checks what came back.
    fn listen(&mut self, index: usize, data: &[u8]) {
        let Some((conn, actor)) = &mut self.actors[index] else { return };
        let conn = *conn;
        for chunk in data.chunks(MESSAGE_MAX) {
            let start = (actor.offset + actor.received) % PERIOD;
            if *chunk != self.pattern[start..start + chunk.len()] {
                let what = format!(
                    "{:?}: other bytes than were sent, near {}",
                    actor.kind, actor.received
                );
                self.objection.get_or_insert(what);
            }
            actor.received += chunk.len();
        }
        self.bytes += data.len() as u64;
        match actor.kind {
            Kind::Resetter if actor.received > actor.goal / 2 => drop(self.engine.abort(conn)),
            Kind::Talker | Kind::Trickler if actor.is_finished() => drop(self.engine.close(conn)),
            _ => self.speak(index),
        }
    }

    /// Somebody's timer fired; it may be somebody of an earlier life.
    fn awake(&mut self, tag: u64) {
        let (life, index) = ((tag >> 32) as u32, tag as u32 as usize);
        let Some((conn, actor)) =
            self.actors[index].as_ref().filter(|(_, actor)| actor.life == life)
        else {
            return;
        };
        let _ = match actor.kind {
            Kind::Sleeper => self.engine.resume_reads(*conn),
            Kind::Silent => self.engine.close(*conn),
            _ => self.engine.abort(*conn),
        };
    }

    fn send_the_lingering_home(&mut self) {
        for (conn, actor) in self.actors.iter().flatten() {
            if actor.kind.lingers() {
                let _ = if actor.kind == Kind::Silent {
                    self.engine.close(*conn)
                } else {
                    self.engine.abort(*conn)
                };
            }
        }
    }
}
