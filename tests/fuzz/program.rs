//! Random programs. Owns: the engines of a run and what is done with them: a phase of random
//! actions, a quiet one, an end in good order, and a look at what is left.

use super::model::Model;
use super::stage::Stage;
use super::{Plan, Rng};
use proactor::*;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How often everything is polled at the end before it counts as stuck: in all, and without any
/// completion.
const ROUNDS_MAX: u32 = 1_000_000;
const QUIET_ROUNDS_MAX: u32 = 20_000;
/// When nothing was told for so long, nothing that is under way can be missing: longer than any
/// delay or outage.
const QUIET_SIMULATED: Duration = Duration::from_secs(2);
const QUIET_KERNEL: Duration = Duration::from_millis(100);

/// One engine, and what the program knows of it.
pub(super) struct Player {
    pub(super) engine: Option<Engine>,
    /// Which engine this is, counting those that crashed.
    pub(super) number: usize,
    pub(super) config: Config,
    pub(super) buffers: usize,
    /// The high watermark of its send queues.
    pub(super) high: usize,
    pub(super) out: Completions,
    pub(super) live: Vec<usize>,
    pub(super) ended: Vec<ConnId>,
    pub(super) listeners: Vec<Listening>,
    pub(super) timers: HashMap<TimerId, (Instant, u64)>,
    pub(super) timer_list: Vec<TimerId>,
    /// Leases kept for a while, with what they must hold.
    pub(super) held: VecDeque<(Lease, Vec<u8>)>,
    /// What a mirror could not send on yet.
    pub(super) waiting: HashMap<usize, VecDeque<Payload>>,
    /// The waker was called since the last poll; how often that was so, and was not told yet.
    pub(super) called: bool,
    pub(super) wakes_owed: usize,
    pub(super) closing_all: bool,
    /// The poll before the last told everything there was; the last one did.
    pub(super) was_complete: bool,
    pub(super) is_complete: bool,
}

pub(super) struct Listening {
    pub(super) id: ListenerId,
    pub(super) addr: Addr,
    /// What accepted connections inherit.
    pub(super) socket: SocketOptions,
    pub(super) closing: bool,
}

pub(super) struct Program<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stage: &'a Stage,
    pub(super) rng: Rng,
    pub(super) model: Model,
    pub(super) players: Vec<Player>,
    pub(super) engines: usize,
    pub(super) names: usize,
    /// Completions so far.
    pub(super) told: u64,
    pub(super) rounds: u64,
    /// What a poll told, while it is looked at.
    pub(super) list: Vec<Completion>,
    /// Nothing new is begun any more.
    pub(super) ending: bool,
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
        let tuning = Tuning::default()
            .send_entries_max(2 + rng.below(40))
            .gather_max(1 + rng.below(40))
            .budget(if rng.one_in(4) { 1 + rng.below(4) } else { 8 + rng.below(56) } as u32);
        let config = Config::default()
            .buffers(buffers, size)
            .send_watermarks(high, high / 4)
            .tuning(tuning)
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
            high,
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
            closing_all: false,
            was_complete: false,
            is_complete: false,
        };
        self.players.push(player);
        self.start(index)?;
        self.listen(index)
    }

    /// Makes the engine of a player, if its host is up.
    pub(super) fn start(&mut self, index: usize) -> Result<(), String> {
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

    pub(super) fn listen(&mut self, index: usize) -> Result<(), String> {
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
                let addr = engine
                    .listener_addr(id)
                    .map_err(|error| format!("a listener without an address: {error}"))?;
                player.listeners.push(Listening { id, addr, socket, closing: false });
                Ok(())
            }
            Err(
                Error::Os { errno: Errno(libc::EMFILE), .. }
                | Error::Simulation(Halt::Crashed)
                | Error::Closing,
            ) => Ok(()),
            Err(error) => Err(format!("cannot listen: {error}")),
        }
    }

    pub(super) fn socket_options(&mut self) -> SocketOptions {
        let rng = &mut self.rng;
        SocketOptions {
            read_mode: if rng.one_in(6) { ReadMode::Paused } else { ReadMode::Streaming },
            half_open: !rng.one_in(6),
            idle_timeout: rng.one_in(8).then(|| Duration::from_millis(1 + rng.below(500) as u64)),
            ..SocketOptions::default()
        }
    }

    /// Polls those that want it, now and then everybody.
    fn poll_all(&mut self) -> Result<(), String> {
        self.rounds += 1;
        // Those that have nothing to do tell the world of new timers.
        let everybody = self.rounds.is_multiple_of(8) || !self.stage.is_simulated();
        for index in 0..self.players.len() {
            let idle = !everybody
                && self.players[index].engine.as_ref().is_some_and(|engine| !engine.wants_poll());
            if !idle {
                self.poll(index)?;
            }
        }
        Ok(())
    }

    /// Lets everything come to rest, reads on, and looks whether nothing that should have moved
    /// stands still.
    fn settle(&mut self) -> Result<(), String> {
        for index in 0..self.players.len() {
            for conn in self.players[index].live.clone() {
                self.resume(index, conn)?;
            }
        }
        let quiet_for = if self.stage.is_simulated() { QUIET_SIMULATED } else { QUIET_KERNEL };
        let (mut settled, mut rounds, mut since, mut seen) =
            (false, 0, self.stage.now(), self.told);
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
                    return Err(format!(
                        "{}: all was sent, and `Drained` never came; {end:?}",
                        end.id
                    ));
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
                left += engine.connections()
                    + player.listeners.len()
                    + player.timers.len()
                    + player.live.len();
                // Accepted, or started anew, meanwhile.
                if round % 16 == 15 && !player.closing_all {
                    self.begin_end(index)?;
                }
            }
            if left == 0 {
                return Ok(());
            }
        }
        let stuck: Vec<_> = self
            .players
            .iter()
            .flat_map(|player| player.live.iter())
            .map(|conn| &self.model.conns[*conn])
            .collect();
        let timers: usize = self.players.iter().map(|player| player.timers.len()).sum();
        Err(format!("stuck: {} connections ({:?}), {timers} timers", stuck.len(), stuck.first()))
    }

    fn begin_end(&mut self, index: usize) -> Result<(), String> {
        let close_all = self.rng.one_in(2);
        let Some(engine) = self.players[index].engine.as_mut() else { return Ok(()) };
        if close_all {
            engine.close_all(Duration::from_millis(500));
            let player = &mut self.players[index];
            player.closing_all = true;
            player.listeners.iter_mut().for_each(|listening| listening.closing = true);
            for conn in &player.live {
                self.model.conns[*conn].close_all_called = true;
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
            self.call(
                index,
                conn,
                |engine, id| if abort { engine.abort(id) } else { engine.close(id) },
            )?;
        }
        let player = &mut self.players[index];
        let engine = player.engine.as_mut().expect("checked above");
        for listening in player.listeners.iter_mut().filter(|listening| !listening.closing) {
            listening.closing = true;
            engine
                .close_listener(listening.id)
                .map_err(|error| format!("a live listener: {error}"))?;
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
