//! Random programs. Owns: the engines of a run and what is done with them: a phase of random actions, a quiet one, an end in good order, and
//! a look at what is left.

use super::model::Model;
use super::stage::Stage;
use super::{Plan, Rng};
use bytes::{Bytes, BytesMut};
use proactor::sim::Fault;
use proactor::*;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How often everything is polled at the end before it counts as stuck: in all, and without any completion.
const ROUNDS_MAX: u32 = 1_000_000;
const QUIET_ROUNDS_MAX: u32 = 20_000;
/// When nothing was told for so long, nothing that is under way can be missing: longer than any delay or outage.
const QUIET_SIMULATED: Duration = Duration::from_secs(2);
const QUIET_KERNEL: Duration = Duration::from_millis(100);

/// One engine, and what the program knows of it.
struct Player {
    engine: Option<Engine>,
    /// Which engine this is, counting those that crashed.
    number: usize,
    config: Config,
    buffers: usize,
    out: Completions,
    live: Vec<usize>,
    ended: Vec<ConnId>,
    listeners: Vec<Listening>,
    timers: HashMap<TimerId, (Instant, u64)>,
    timer_list: Vec<TimerId>,
    /// Leases kept for a while, with what they must hold.
    held: VecDeque<(Lease, Vec<u8>)>,
    /// What a mirror could not send on yet.
    waiting: HashMap<usize, VecDeque<Payload>>,
    /// The waker was called since the last poll; how often that was so, and was not told yet.
    called: bool,
    wakes_owed: usize,
    draining: bool,
    /// The poll before the last told everything there was; the last one did.
    was_complete: bool,
    is_complete: bool,
}

struct Listening {
    id: ListenerId,
    addr: Addr,
    /// What accepted connections inherit.
    socket: SocketOptions,
    closing: bool,
}

struct Program<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    rng: Rng,
    model: Model,
    players: Vec<Player>,
    engines: usize,
    names: usize,
    /// Completions so far.
    told: u64,
    rounds: u64,
    /// What a poll told, while it is looked at.
    list: Vec<Completion>,
    /// Nothing new is begun any more.
    ending: bool,
}

/// Runs the program of a plan.
pub fn run(plan: &Plan, stage: &Stage) -> Result<(), String> {
    let mut program = Program::new(plan, stage);
    let result = program.go();
    // What comes in the trace after this is the engines being dropped.
    if let Err(why) = &result {
        stage.look(|world| world.note(&format!("FAILED: {why}")));
    }
    result
}

impl<'a> Program<'a> {
    fn new(plan: &'a Plan, stage: &'a Stage) -> Program<'a> {
        Program {
            plan,
            stage,
            rng: Rng::new(plan.seed),
            model: Model::default(),
            players: Vec::new(),
            engines: 0,
            names: 0,
            told: 0,
            rounds: 0,
            list: Vec::new(),
            ending: false,
        }
    }

    fn go(&mut self) -> Result<(), String> {
        let count = 2 + self.rng.below(3);
        for index in 0..count {
            self.add_player(index)?;
        }
        for _ in 0..self.plan.actions {
            let player = self.rng.below(count);
            self.act(player)?;
            if !self.rng.one_in(4) {
                let player = self.rng.below(count);
                self.poll(player)?;
            }
            let events = self.rng.below(9);
            self.stage.step(events);
        }
        self.settle()?;
        self.end()?;
        self.look_for_leaks()
    }

    fn add_player(&mut self, index: usize) -> Result<(), String> {
        let rng = &mut self.rng;
        let (buffers, size) = (1 << rng.below(7), 64 << rng.below(7));
        let high = 256 << rng.below(10);
        let config = Config::default()
            .buffers(buffers, size)
            .send_watermarks(high, high / 4)
            .send_entries_max(2 + rng.below(40))
            .gather_max(1 + rng.below(40))
            .budget(if rng.one_in(4) { 1 + rng.below(4) } else { 8 + rng.below(56) } as u32)
            .connections_max(if rng.one_in(4) { 3 } else { 200 })
            .linger(Duration::from_millis(20 + rng.below(2000) as u64))
            .fin_wait(Duration::from_millis([0, 1, 250][rng.below(3)]))
            .connect_timeout(Some(Duration::from_millis(1 + rng.below(3000) as u64)));
        let capacity = if rng.one_in(4) { 1 + rng.below(4) } else { 16 + rng.below(112) };
        let player = Player {
            engine: None,
            number: 0,
            config,
            buffers: buffers as usize,
            out: Completions::with_capacity(capacity),
            live: Vec::new(),
            ended: Vec::new(),
            listeners: Vec::new(),
            timers: HashMap::new(),
            timer_list: Vec::new(),
            held: VecDeque::new(),
            waiting: HashMap::new(),
            called: false,
            wakes_owed: 0,
            draining: false,
            was_complete: false,
            is_complete: false,
        };
        self.players.push(player);
        self.start(index)?;
        self.listen(index)
    }

    /// Makes the engine of a player, if its host is up.
    fn start(&mut self, index: usize) -> Result<(), String> {
        match self.stage.engine(index, self.players[index].config.clone()) {
            Ok(engine) => {
                self.players[index].engine = Some(engine);
                self.players[index].number = self.engines;
                self.engines += 1;
                Ok(())
            }
            Err(Error::Simulation(Halt::Crashed)) => Ok(()),
            Err(error) => Err(format!("no engine: {error}")),
        }
    }

    fn listen(&mut self, index: usize) -> Result<(), String> {
        let unix = self.rng.one_in(3);
        self.names += 1;
        let addr = self.stage.address(index, unix, self.names);
        let options = ListenOptions {
            backlog: if self.rng.one_in(3) { 1 } else { 64 },
            socket: self.socket_options(),
            ..ListenOptions::default()
        };
        let socket = options.socket.clone();
        let player = &mut self.players[index];
        let Some(engine) = player.engine.as_mut() else { return Ok(()) };
        match engine.listen(addr, options) {
            Ok(id) => {
                let addr =
                    engine.listener_addr(id).map_err(|error| format!("a listener without an address: {error}"))?;
                player.listeners.push(Listening { id, addr, socket, closing: false });
                Ok(())
            }
            Err(Error::Os { errno: Errno(libc::EMFILE), .. } | Error::Simulation(Halt::Crashed) | Error::Draining) => {
                Ok(())
            }
            Err(error) => Err(format!("cannot listen: {error}")),
        }
    }

    fn socket_options(&mut self) -> SocketOptions {
        let rng = &mut self.rng;
        SocketOptions {
            read_mode: if rng.one_in(6) { ReadMode::Paused } else { ReadMode::Streaming },
            half_open: !rng.one_in(6),
            idle_timeout: rng.one_in(8).then(|| Duration::from_millis(1 + rng.below(500) as u64)),
            ..SocketOptions::default()
        }
    }

    /// One random action of a player.
    fn act(&mut self, index: usize) -> Result<(), String> {
        if self.players[index].engine.is_none() {
            return Ok(());
        }
        let conn = self.rng.pick(&self.players[index].live).copied();
        match (self.rng.below(40), conn) {
            (0..5, _) => self.connect(index),
            (5, _) if self.players[index].listeners.len() < 4 => self.listen(index),
            (6, _) => self.close_listener(index),
            (7..10, _) => self.set_timer(index),
            (10, _) => self.move_timer(index),
            (11, _) => {
                self.players[index].engine.as_ref().expect("checked above").waker().wake();
                self.players[index].called = true;
                Ok(())
            }
            (12, _) => self.try_stale(index),
            (13, _) => self.let_go(index, 3),
            (14..28, Some(conn)) => {
                for _ in 0..1 + self.rng.below(6) {
                    let len = self.some_len();
                    self.send(index, conn, len)?;
                }
                Ok(())
            }
            (28 | 29, Some(conn)) => self.pause(index, conn),
            (30..33, Some(conn)) => self.resume(index, conn),
            (33 | 38, Some(conn)) => self.fill(index, conn),
            (34, Some(conn)) => {
                self.note(conn, "shutdown_write");
                self.model.conns[conn].shut_called = true;
                self.call(index, conn, |engine, id| engine.shutdown_write(id))
            }
            (35 | 36, Some(conn)) => {
                self.note(conn, "close");
                self.model.conns[conn].close_called = true;
                self.call(index, conn, |engine, id| engine.close(id))
            }
            (37, Some(conn)) => {
                self.note(conn, "abort");
                self.model.conns[conn].abort_called = true;
                self.call(index, conn, |engine, id| engine.abort(id))
            }
            _ => Ok(()),
        }
    }

    /// What is called, for those who read the trace.
    fn note(&self, conn: usize, call: &str) {
        let end = &self.model.conns[conn];
        self.stage.note(|| format!("engine {} conn {} is called: {call}", end.engine, end.id));
    }

    fn some_len(&mut self) -> usize {
        match self.rng.below(8) {
            0 => 0,
            1..6 => 1 + self.rng.below(300),
            6 => 1 + self.rng.below(5_000),
            _ => 1 + self.rng.below(60_000),
        }
    }

    /// A call that may find the id stale: the end is known inside, and will be told.
    fn call(
        &mut self,
        index: usize,
        conn: usize,
        call: impl FnOnce(&mut Engine, ConnId) -> Result<(), Error>,
    ) -> Result<(), String> {
        let Some(engine) = self.players[index].engine.as_mut() else { return Ok(()) };
        match call(engine, self.model.conns[conn].id) {
            Ok(()) | Err(Error::Stale) => Ok(()),
            Err(error) => Err(format!("{}: {error}", self.model.conns[conn].id)),
        }
    }

    fn connect(&mut self, index: usize) -> Result<(), String> {
        let target = self.rng.below(self.players.len());
        let addrs: Vec<Addr> = self.players[target].listeners.iter().map(|listening| listening.addr.clone()).collect();
        let addr = match self.rng.pick(&addrs).cloned() {
            Some(addr) if !self.rng.one_in(12) => addr,
            _ => self.stage.dead_end(&mut self.rng),
        };
        let unix = addr.as_inet().is_none();
        if unix && !self.stage.same_host(index, target) {
            return Ok(());
        }
        let options = ConnectOptions { socket: self.socket_options(), ..ConnectOptions::default() };
        let (paused, half_open) = (options.socket.read_mode == ReadMode::Paused, options.socket.half_open);
        let idle = options.socket.idle_timeout.is_some();
        let player = &mut self.players[index];
        let engine = player.engine.as_mut().expect("checked by the caller");
        match engine.connect(addr, options) {
            Ok(id) => {
                let conn = self.model.add(player.number, id, false)?;
                let end = &mut self.model.conns[conn];
                (end.unix, end.paused, end.closes_with_peer, end.has_idle_timeout) = (unix, paused, !half_open, idle);
                player.live.push(conn);
                // The head at least, often.
                if self.rng.one_in(2) {
                    self.send(index, conn, 4)?;
                }
                Ok(())
            }
            Err(Error::Limit { limit: "connections_max", .. } | Error::Draining) => Ok(()),
            Err(error) => Err(format!("cannot connect: {error}")),
        }
    }

    fn close_listener(&mut self, index: usize) -> Result<(), String> {
        let count = self.players[index].listeners.len();
        let choice = self.rng.below(count);
        let player = &mut self.players[index];
        if let (Some(listening), Some(engine)) = (player.listeners.get_mut(choice), player.engine.as_mut()) {
            // Closed before, it may be gone already.
            let before = std::mem::replace(&mut listening.closing, true);
            match engine.close_listener(listening.id) {
                Err(error) if !before => return Err(format!("a live listener: {error}")),
                _ => {}
            }
        }
        Ok(())
    }

    fn set_timer(&mut self, index: usize) -> Result<(), String> {
        let delay = Duration::from_micros(self.rng.below(300_000) as u64);
        let tag = self.rng.next();
        let player = &mut self.players[index];
        let engine = player.engine.as_mut().expect("checked by the caller");
        let due = engine.now() + delay;
        let id = engine.timer_after(delay, tag).map_err(|error| format!("no timer: {error}"))?;
        player.timers.insert(id, (due, tag));
        player.timer_list.push(id);
        Ok(())
    }

    fn move_timer(&mut self, index: usize) -> Result<(), String> {
        let (delay, cancel) = (Duration::from_micros(self.rng.below(300_000) as u64), self.rng.one_in(2));
        let Some(id) = self.rng.pick(&self.players[index].timer_list).copied() else { return Ok(()) };
        let player = &mut self.players[index];
        let engine = player.engine.as_mut().expect("checked by the caller");
        let now = engine.now();
        match cancel {
            true if engine.timer_cancel(id) => {
                player.timers.remove(&id).ok_or("a timer was cancelled that had fired")?;
            }
            false if engine.timer_reset(id, delay) => {
                player.timers.get_mut(&id).ok_or("a timer was moved that had fired")?.0 = now + delay;
            }
            _ => {}
        }
        Ok(())
    }

    /// Ids of the past must reach nobody.
    fn try_stale(&mut self, index: usize) -> Result<(), String> {
        let Some(id) = self.rng.pick(&self.players[index].ended).copied() else { return Ok(()) };
        let choice = self.rng.below(4);
        let engine = self.players[index].engine.as_mut().expect("checked by the caller");
        let refused = match choice {
            0 => matches!(engine.abort(id), Err(Error::Stale)),
            1 => matches!(engine.send(id, "stale"), Err(SendError::Stale(_))),
            2 => matches!(engine.pause_reads(id), Err(Error::Stale)),
            _ => !engine.is_live(id),
        };
        if refused { Ok(()) } else { Err(format!("{id} is stale, and was accepted")) }
    }

    /// Drops leases that were kept, after a look at them.
    fn let_go(&mut self, index: usize, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let Some((lease, copy)) = self.players[index].held.pop_front() else { return Ok(()) };
            if lease[..] != copy[..] {
                return Err("a lease changed while it was kept".to_owned());
            }
        }
        Ok(())
    }

    /// Sends the next bytes of a connection. Returns whether the queue took them.
    fn send(&mut self, index: usize, conn: usize, len: usize) -> Result<(), String> {
        if self.model.conns[conn].mirror {
            return Ok(());
        }
        self.note(conn, "send");
        let bytes = self.model.next_bytes(conn, len);
        let (kind, tag) = (self.rng.below(5), self.rng.next());
        let id = self.model.conns[conn].id;
        let engine = self.players[index].engine.as_mut().ok_or("no engine")?;
        let result = match kind {
            0 => engine.write(id, &bytes).map_err(|error| match error {
                WriteError::Full => SendError::Full(bytes.clone().into()),
                WriteError::Closed => SendError::Closed(bytes.clone().into()),
                WriteError::Stale => SendError::Stale(bytes.clone().into()),
            }),
            1 => engine.send_tagged(id, bytes, tag),
            2 => engine.send(id, Bytes::from(bytes)),
            _ => engine.send(id, bytes),
        };
        match result {
            Ok(()) => {
                self.model.sent(conn, len);
                if kind == 1 {
                    self.model.conns[conn].tags.push_back(tag);
                }
                Ok(())
            }
            Err(error) => {
                if error.is_full() {
                    self.model.conns[conn].refused = true;
                }
                let back = error.into_payload();
                if back.as_slice() == self.model.next_bytes(conn, len) {
                    Ok(())
                } else {
                    Err(format!("{id}: a refused payload came back changed"))
                }
            }
        }
    }

    fn pause(&mut self, index: usize, conn: usize) -> Result<(), String> {
        self.note(conn, "pause");
        let id = self.model.conns[conn].id;
        let Some(engine) = self.players[index].engine.as_mut() else { return Ok(()) };
        match engine.pause_reads(id) {
            Ok(()) => self.model.conns[conn].paused = true,
            // It has ended inside; what was told before is still to come.
            Err(Error::Stale) => {}
            Err(error) => return Err(format!("{id}: {error}")),
        }
        Ok(())
    }

    fn resume(&mut self, index: usize, conn: usize) -> Result<(), String> {
        let id = self.model.conns[conn].id;
        let live = self.players[index].engine.as_ref().is_some_and(|engine| engine.is_live(id));
        if !live || self.players[index].waiting.contains_key(&conn) {
            return Ok(());
        }
        self.note(conn, "resume");
        self.call(index, conn, |engine, id| engine.resume_reads(id))?;
        self.model.resumed(conn);
        Ok(())
    }

    fn fill(&mut self, index: usize, conn: usize) -> Result<(), String> {
        if self.model.conns[conn].mirror {
            return Ok(());
        }
        self.note(conn, "fill");
        let most = [100, 1_000, 20_000][self.rng.below(3)];
        let len = 1 + self.rng.below(most);
        let id = self.model.conns[conn].id;
        let Some(engine) = self.players[index].engine.as_mut() else { return Ok(()) };
        match engine.recv_into(id, BytesMut::new(), len) {
            Ok(()) => self.model.conns[conn].filling.push_back(len),
            Err(Error::State(_) | Error::Stale) => {}
            Err(error) => return Err(format!("{id} cannot fill a buffer: {error}")),
        }
        Ok(())
    }

    /// One poll of a player, and what came of it.
    fn poll(&mut self, index: usize) -> Result<(), String> {
        let timeout = match self.stage.is_simulated() {
            true => Duration::ZERO,
            false => Duration::from_micros(if self.ending { 500 } else { 0 }),
        };
        let player = &mut self.players[index];
        let Some(engine) = player.engine.as_mut() else { return self.start(index) };
        match engine.poll(&mut player.out, Some(timeout)) {
            Ok(_) => {}
            Err(Error::Simulation(Halt::Crashed)) => {
                self.crashed(index);
                return Ok(());
            }
            Err(error) => return Err(format!("poll: {error}")),
        }
        for conn in &player.live {
            self.model.conns[*conn].sent_since = false;
        }
        let had_room = player.out.len() < player.out.capacity();
        player.was_complete = std::mem::replace(&mut player.is_complete, had_room);
        let mut list = std::mem::take(&mut self.list);
        list.extend(player.out.drain());
        let woken = list.iter().filter(|completion| matches!(completion.event, Event::Woken)).count();
        // Calls between two polls are one event, which may have to wait for room.
        player.wakes_owed += usize::from(std::mem::take(&mut player.called));
        if woken > player.wakes_owed {
            return Err("woken, but nobody called".to_owned());
        }
        player.wakes_owed -= woken;
        if player.wakes_owed > 0 && had_room {
            return Err("a wake-up was missed".to_owned());
        }
        self.told += list.len() as u64;
        for completion in list.drain(..) {
            self.handle(index, completion)?;
        }
        self.list = list;
        Ok(())
    }

    fn crashed(&mut self, index: usize) {
        let player = &mut self.players[index];
        player.engine = None;
        for conn in player.live.drain(..) {
            self.model.conns[conn].lost = true;
        }
        player.ended.clear();
        player.listeners.clear();
        player.timers.clear();
        player.timer_list.clear();
        player.waiting.clear();
        player.out.drain();
        (player.called, player.wakes_owed, player.draining) = (false, 0, false);
    }

    fn handle(&mut self, index: usize, completion: Completion) -> Result<(), String> {
        let Completion { conn: id, tag, event } = completion;
        let number = self.players[index].number;
        self.stage.note(|| format!("engine {number} conn {id} tells {event:?}"));
        match event {
            Event::Accepted { listener } => return self.accepted(index, id, listener),
            Event::Timer { id } => return self.timer_fired(index, id, tag),
            Event::Woken | Event::ListenerResumed { .. } => return Ok(()),
            Event::ListenerPaused { errno, .. } => {
                let expected = self.plan.faults.probability(Fault::Descriptors) > 0.0 && self.stage.is_simulated();
                return match errno {
                    Some(errno) if !expected => Err(format!("a listener paused: {errno:?}")),
                    _ => Ok(()),
                };
            }
            Event::ListenerClosed { listener, errno } => {
                let listeners = &mut self.players[index].listeners;
                let place = listeners.iter().position(|listening| listening.id == listener && listening.closing);
                listeners.remove(place.ok_or("a listener closed that nobody closed")?);
                return if errno.is_none() { Ok(()) } else { Err(format!("a listener failed: {errno:?}")) };
            }
            _ => {}
        }
        let conn = self.model.find(number, id)?;
        match event {
            Event::Connected => self.model.connected(conn),
            Event::Received(lease) => self.received(index, conn, lease),
            Event::Filled(buffer) => self.model.filled(conn, &buffer),
            Event::ReadClosed => {
                self.model.read_closed(conn)?;
                if self.rng.one_in(2) {
                    self.model.conns[conn].close_called = true;
                    self.call(index, conn, |engine, id| engine.close(id))?;
                }
                Ok(())
            }
            Event::Sent { tag } => self.model.sent_tag(conn, tag),
            Event::Drained => self.drained(index, conn),
            Event::Closed(reason) => {
                let player = &mut self.players[index];
                player.live.retain(|live| *live != conn);
                player.waiting.remove(&conn);
                player.ended.push(id);
                self.model.closed(conn, reason)
            }
            other => Err(format!("an event that nobody expects: {other:?}")),
        }
    }

    fn accepted(&mut self, index: usize, id: ConnId, listener: ListenerId) -> Result<(), String> {
        let mirror = self.rng.one_in(3);
        let player = &mut self.players[index];
        let conn = self.model.add(player.number, id, true)?;
        player.live.push(conn);
        let end = &mut self.model.conns[conn];
        let listening = player.listeners.iter().find(|listening| listening.id == listener);
        let Listening { addr, socket, .. } = listening.ok_or("accepted by no listener")?;
        end.unix = addr.as_inet().is_none();
        (end.closes_with_peer, end.has_idle_timeout) = (!socket.half_open, socket.idle_timeout.is_some());
        end.paused = socket.read_mode == ReadMode::Paused;
        end.drain_called = player.draining;
        if mirror {
            self.model.make_mirror(conn);
        }
        Ok(())
    }

    fn received(&mut self, index: usize, conn: usize, lease: Lease) -> Result<(), String> {
        self.model.received(conn, &lease)?;
        if self.model.conns[conn].mirror {
            let player = &mut self.players[index];
            player.waiting.entry(conn).or_default().push_back(lease.into());
            return self.send_on(index, conn);
        }
        if self.rng.one_in(6) {
            let copy = lease.to_vec();
            self.players[index].held.push_back((lease, copy));
            if self.players[index].held.len() > 40 {
                self.let_go(index, 5)?;
            }
        }
        Ok(())
    }

    /// A mirror sends what it has received.
    fn send_on(&mut self, index: usize, conn: usize) -> Result<(), String> {
        let id = self.model.conns[conn].id;
        let player = &mut self.players[index];
        let Some(mut queue) = player.waiting.remove(&conn) else { return Ok(()) };
        let engine = player.engine.as_mut().ok_or("no engine")?;
        while let Some(payload) = queue.pop_front() {
            let len = payload.len();
            match engine.send(id, payload) {
                Ok(()) => self.model.sent(conn, len),
                Err(SendError::Full(payload)) => {
                    queue.push_front(payload);
                    player.waiting.insert(conn, queue);
                    self.model.conns[conn].refused = true;
                    return self.pause_for_room(index, conn);
                }
                // The rest has no way to go.
                Err(_) if self.model.conns[conn].paused => return Ok(()),
                Err(_) => return self.call(index, conn, |engine, id| engine.resume_reads(id)),
            }
        }
        Ok(())
    }

    fn pause_for_room(&mut self, index: usize, conn: usize) -> Result<(), String> {
        self.call(index, conn, |engine, id| engine.pause_reads(id))
    }

    fn drained(&mut self, index: usize, conn: usize) -> Result<(), String> {
        // Told in this poll for sure only if the one before had told everything.
        let untouched = !self.model.conns[conn].sent_since && self.players[index].was_complete;
        self.model.conns[conn].refused = false;
        match self.model.conns[conn].mirror {
            true => {
                self.send_on(index, conn)?;
                if self.players[index].waiting.contains_key(&conn) || self.model.conns[conn].paused {
                    return Ok(());
                }
                self.call(index, conn, |engine, id| engine.resume_reads(id))
            }
            false => {
                self.send(index, conn, 1)?;
                match untouched && self.model.conns[conn].refused {
                    true => Err(format!("{}: drained, and full", self.model.conns[conn].id)),
                    false => Ok(()),
                }
            }
        }
    }

    fn timer_fired(&mut self, index: usize, id: TimerId, tag: u64) -> Result<(), String> {
        let player = &mut self.players[index];
        let now = player.engine.as_mut().ok_or("no engine")?.now();
        match player.timers.remove(&id) {
            Some((due, expected)) if due <= now && expected == tag => Ok(()),
            Some((due, _)) => {
                Err(format!("a timer fired {:?} early, or with another tag", due.saturating_duration_since(now)))
            }
            None => Err(format!("{id} fired twice, or after it was cancelled")),
        }
    }

    /// Polls those that want it, now and then everybody.
    fn poll_all(&mut self) -> Result<(), String> {
        self.rounds += 1;
        // Those that have nothing to do tell the world of new timers.
        let everybody = self.rounds.is_multiple_of(8) || !self.stage.is_simulated();
        for index in 0..self.players.len() {
            let idle = !everybody && self.players[index].engine.as_ref().is_some_and(|engine| !engine.wants_poll());
            if !idle {
                self.poll(index)?;
            }
        }
        Ok(())
    }

    /// Lets everything come to rest, reads on, and looks whether nothing that should have moved stands still.
    fn settle(&mut self) -> Result<(), String> {
        for index in 0..self.players.len() {
            for conn in self.players[index].live.clone() {
                self.resume(index, conn)?;
            }
        }
        let quiet_for = if self.stage.is_simulated() { QUIET_SIMULATED } else { QUIET_KERNEL };
        let (mut settled, mut rounds, mut since, mut seen) = (false, 0, self.stage.now(), self.told);
        let mut more = true;
        for _ in 0..3_000 {
            self.poll_all()?;
            if self.told != seen {
                (rounds, since, seen) = (0, self.stage.now(), self.told);
            }
            rounds += 1;
            settled = rounds > 15 && (!more || self.stage.now() - since > quiet_for);
            if settled {
                break;
            }
            more = self.stage.step(100);
            for index in 0..self.players.len() {
                self.let_go(index, 2)?;
            }
        }
        for player in self.players.iter().filter(|_| settled) {
            let Some(engine) = player.engine.as_ref() else { continue };
            for conn in &player.live {
                self.model.settled(*conn)?;
                let end = &self.model.conns[*conn];
                let empty = engine.queued_bytes(end.id).is_ok_and(|bytes| bytes == 0);
                let closing = end.close_called || end.shut_called || end.closes_with_peer;
                if end.refused && end.connected && empty && !closing {
                    return Err(format!("{}: all was sent, and `Drained` never came; {end:?}", end.id));
                }
            }
        }
        Ok(())
    }

    /// Ends everything, in one of several ways, and waits until it is over.
    fn end(&mut self) -> Result<(), String> {
        self.ending = true;
        for index in 0..self.players.len() {
            self.begin_end(index)?;
        }
        let (mut rounds_left, mut seen) = (QUIET_ROUNDS_MAX, 0);
        for round in 0..ROUNDS_MAX {
            self.poll_all()?;
            self.stage.step(100);
            // Input that is discarded is progress too.
            let progress = self.told + self.stage.completions();
            rounds_left = if progress == seen { rounds_left - 1 } else { QUIET_ROUNDS_MAX };
            seen = progress;
            if rounds_left == 0 {
                break;
            }
            let mut left = 0;
            for index in 0..self.players.len() {
                let player = &self.players[index];
                let Some(engine) = player.engine.as_ref() else {
                    left += 1;
                    continue;
                };
                left += engine.connections() + player.listeners.len() + player.timers.len() + player.live.len();
                // Accepted, or started anew, meanwhile.
                if round % 16 == 15 && !player.draining {
                    self.begin_end(index)?;
                }
            }
            if left == 0 {
                return Ok(());
            }
        }
        let stuck: Vec<_> =
            self.players.iter().flat_map(|player| player.live.iter()).map(|conn| &self.model.conns[*conn]).collect();
        let timers: usize = self.players.iter().map(|player| player.timers.len()).sum();
        Err(format!("stuck: {} connections ({:?}), {timers} timers", stuck.len(), stuck.first()))
    }

    fn begin_end(&mut self, index: usize) -> Result<(), String> {
        let drain = self.rng.one_in(2);
        let Some(engine) = self.players[index].engine.as_mut() else { return Ok(()) };
        if drain {
            engine.drain(Duration::from_millis(500));
            let player = &mut self.players[index];
            player.draining = true;
            player.listeners.iter_mut().for_each(|listening| listening.closing = true);
            for conn in &player.live {
                self.model.conns[*conn].drain_called = true;
            }
            return Ok(());
        }
        for conn in self.players[index].live.clone() {
            let abort = self.rng.one_in(4);
            let end = &mut self.model.conns[conn];
            if abort {
                end.abort_called = true
            } else {
                end.close_called = true
            }
            self.call(index, conn, |engine, id| if abort { engine.abort(id) } else { engine.close(id) })?;
        }
        let player = &mut self.players[index];
        let engine = player.engine.as_mut().expect("checked above");
        for listening in player.listeners.iter_mut().filter(|listening| !listening.closing) {
            listening.closing = true;
            engine.close_listener(listening.id).map_err(|error| format!("a live listener: {error}"))?;
        }
        Ok(())
    }

    /// Everything has ended: nothing may be left.
    fn look_for_leaks(&mut self) -> Result<(), String> {
        for index in 0..self.players.len() {
            let kept = self.players[index].held.len();
            self.let_go(index, kept)?;
            let player = &self.players[index];
            let engine = player.engine.as_ref().ok_or("no engine")?;
            engine.audit()?;
            let free = engine.free_buffers();
            if self.stage.is_simulated() && free != player.buffers {
                return Err(format!("{free} receive buffers are free of {}", player.buffers));
            }
            let (sent, told) = (engine.stats().bytes_sent, self.model.handed_over(player.number));
            if sent != told {
                return Err(format!("{sent} bytes were handed over, by what was told {told}"));
            }
            let stats = engine.stats();
            if stats.unknown_completions != 0 {
                return Err(format!("{} completions of nobody", stats.unknown_completions));
            }
        }
        let mut left = None;
        self.stage.look(|world| left = Some(world.census()));
        match left {
            Some(census) if (census.sockets, census.listeners, census.descriptors) != (0, 0, 0) => {
                Err(format!("left open: {census:?}"))
            }
            _ => Ok(()),
        }
    }
}
