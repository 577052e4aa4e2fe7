//! Who runs when. Owns: the world behind its lock, its clock, and the programs in it. Invariant:
//! exactly one thread of a world runs at a time, and which one is decided by the world alone; so
//! threads, which programs need to be able to block, add no chance of their own.
//!
//! A thread that waits says what for. When it does, another one that can go on is picked; if there
//! is none, the clock moves on to the next event, and what that made possible is looked at.

use super::NEVER;
use super::net::Net;
use super::sock::{ListenId, SockId};
use super::trace::Kind;
use crate::error::Halt;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// How long a poll that does not wait takes, so that a loop of such polls does not stop the clock.
const POLL_COST_NS: u64 = 1_000;

/// So many calls of a program may answer that the world has ended before it is ended by a panic.
const FAREWELLS_MAX: u32 = 10_000;

thread_local! {
    /// Which program this thread is, and of which world: its number, and the world's address, which
    /// only tells worlds apart.
    static ME: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Engine(u32),
    Connected(SockId),
    Readable(SockId),
    Writable(SockId),
    Queued(ListenId),
    /// The end of a program.
    Ended(usize),
    /// That any other program ran, or any event happened.
    Progress(u64),
    /// Only time.
    Time,
}

#[derive(Debug)]
struct Actor {
    turn: Arc<Condvar>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Waiting(Until, Option<u64>),
    Ended,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) net: Net,
    actors: Vec<Actor>,
    current: usize,
    /// Counts what happened: events, and turns of programs.
    pub(crate) progress: u64,
    /// The world is being taken down: whoever waits is sent home.
    pub(crate) over: bool,
    farewells: u32,
}

/// A world, as all that are in it share it.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    /// A copy of the clock, to be read without the lock.
    now: AtomicU64,
    main: ThreadId,
}

impl Shared {
    pub(crate) fn new(seed: u64) -> Arc<Shared> {
        let main = Actor { turn: Arc::default(), state: State::Running };
        let inner = Inner {
            net: Net::new(seed),
            actors: vec![main],
            current: 0,
            progress: 0,
            over: false,
            farewells: 0,
        };
        Arc::new(Shared {
            inner: Mutex::new(inner),
            now: AtomicU64::new(0),
            main: thread::current().id(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of one program is its own affair.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn publish(&self, inner: &Inner) {
        self.now.store(inner.net.now, Ordering::Relaxed);
    }

    /// Lets the next event happen, or moves the clock to when an engine wants to be polled. False
    /// if nothing is coming.
    pub(crate) fn step(&self) -> bool {
        let mut inner = self.lock();
        let net = &mut inner.net;
        let deadline =
            net.engines.iter().filter_map(|engine| engine.deadline).min().map(|at| at.max(net.now));
        let stepped = match deadline {
            Some(deadline) if net.events.next_at().is_none_or(|event| event > deadline) => {
                net.advance(deadline);
                true
            }
            _ => net.step(u64::MAX),
        };
        inner.progress += 1;
        self.publish(&inner);
        stepped
    }

    /// Which program of this world the calling thread is; the one that made the world is 0.
    ///
    /// # Panics
    /// If it is none: two threads would run at a time.
    fn me(&self) -> usize {
        match ME.get() {
            (me, world) if world == std::ptr::from_ref(self).addr() => me,
            _ if thread::current().id() == self.main => {
                ME.set((0, std::ptr::from_ref(self).addr()));
                0
            }
            _ => panic!("only programs that the world spawned can wait in it"),
        }
    }

    /// Waits; `Ok(false)` if the time came first.
    pub(crate) fn wait(&self, what: Until, deadline: Option<u64>) -> Result<bool, Halt> {
        let me = self.me();
        let mut inner = self.lock();
        if inner.over {
            inner.farewells += 1;
            assert!(
                inner.farewells < FAREWELLS_MAX,
                "the simulated world has ended, and this program goes on"
            );
            return Err(Halt::Ended);
        }
        if inner.is_ready(what) {
            return Ok(true);
        }
        // A wait of no time still takes a moment, in which others may run.
        let deadline = deadline
            .filter(|deadline| *deadline < NEVER)
            .map(|deadline| deadline.max(inner.net.now + POLL_COST_NS));
        inner.actors[me].state = State::Waiting(what, deadline);
        loop {
            let next = inner.pick();
            self.publish(&inner);
            let first = next.unwrap_or_else(|| inner.whom_to_tell());
            inner = self.hand_over(inner, me, first);
            let ready = inner.is_ready(what);
            let result = match deadline.is_some_and(|deadline| deadline <= inner.net.now) {
                _ if inner.over => Err(Halt::Ended),
                in_time if ready || in_time => Ok(ready),
                // Nothing will ever happen.
                _ if next.is_none() && first == me => Err(Halt::AtRest),
                _ => continue,
            };
            inner.actors[me].state = State::Running;
            return result;
        }
    }

    /// Gives the turn to another thread, and waits to get it back.
    fn hand_over<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        me: usize,
        next: usize,
    ) -> MutexGuard<'a, Inner> {
        if next != me {
            inner.progress += 1;
            inner.net.note_run(next);
            inner.current = next;
            inner.actors[next].turn.notify_one();
            let turn = Arc::clone(&inner.actors[me].turn);
            inner = turn
                .wait_while(inner, |inner| inner.current != me)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inner
    }

    /// Enters a new program, which gets its turn when others wait.
    pub(crate) fn add_actor(&self) -> usize {
        let mut inner = self.lock();
        let now = inner.net.now;
        inner
            .actors
            .push(Actor { turn: Arc::default(), state: State::Waiting(Until::Time, Some(now)) });
        inner.actors.len() - 1
    }

    /// On the thread of a new program: waits for its first turn. False if the world ended before.
    pub(crate) fn first_turn(&self, me: usize) -> bool {
        ME.set((me, std::ptr::from_ref(self).addr()));
        let inner = self.lock();
        let turn = Arc::clone(&inner.actors[me].turn);
        let mut inner = turn
            .wait_while(inner, |inner| inner.current != me)
            .unwrap_or_else(PoisonError::into_inner);
        inner.actors[me].state = State::Running;
        !inner.over
    }

    /// The program of this thread ended: somebody else has the turn for good.
    pub(crate) fn last_turn(&self, me: usize) {
        let mut inner = self.lock();
        inner.actors[me].state = State::Ended;
        inner.progress += 1;
        // While the world is taken down, the main thread sends one home after the other.
        let next =
            if inner.over { 0 } else { inner.pick().unwrap_or_else(|| inner.whom_to_tell()) };
        self.publish(&inner);
        inner.net.note_run(next);
        inner.current = next;
        inner.actors[next].turn.notify_one();
    }

    pub(crate) fn has_ended(&self, actor: usize) -> bool {
        self.lock().actors[actor].state == State::Ended
    }

    /// Takes the world down: each program in turn is told, and ends.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.over = true;
        for actor in 1..inner.actors.len() {
            inner.farewells = 0;
            while inner.actors[actor].state != State::Ended {
                inner = self.hand_over(inner, 0, actor);
            }
        }
        inner.farewells = 0;
    }
}

impl Inner {
    fn is_ready(&self, what: Until) -> bool {
        match what {
            Until::Engine(engine) => {
                let state = &self.net.engines[engine as usize];
                state.waiting() > 0 || state.is_dead() || state.inbox.is_rung()
            }
            Until::Connected(sock) => {
                self.net.sock(sock).is_none_or(|sock| !sock.connecting || sock.error.is_some())
            }
            Until::Readable(sock) => self.net.sock(sock).is_none_or(|sock| sock.is_readable()),
            Until::Writable(sock) => self.net.is_writable(sock),
            Until::Queued(listener) => {
                self.net.listener(listener).is_none_or(|listen| !listen.queue.is_empty())
            }
            Until::Ended(actor) => self.actors[actor].state == State::Ended,
            Until::Progress(seen) => self.progress > seen,
            Until::Time => false,
        }
    }

    fn can_go_on(&self, actor: &Actor) -> bool {
        match actor.state {
            State::Waiting(what, deadline) => {
                deadline.is_some_and(|deadline| deadline <= self.net.now) || self.is_ready(what)
            }
            _ => false,
        }
    }

    /// A waiting program that can go on; moves the clock to find one. `None`: there never will be
    /// one.
    fn pick(&mut self) -> Option<usize> {
        loop {
            let able = self.actors.iter().filter(|actor| self.can_go_on(actor)).count() as u64;
            if able > 0 {
                let choice = if able > 1 { self.net.rng.below(able) as usize } else { 0 };
                let mut able =
                    self.actors.iter().enumerate().filter(|(_, actor)| self.can_go_on(actor));
                return able.nth(choice).map(|(index, _)| index);
            }
            let deadlines = self.actors.iter().filter_map(|actor| match actor.state {
                State::Waiting(_, deadline) => deadline,
                _ => None,
            });
            let soonest = deadlines.min();
            let event = self.net.events.next_at();
            match (event, soonest) {
                (Some(event), deadline) if deadline.is_none_or(|deadline| event <= deadline) => {
                    self.net.step(event);
                    self.progress += 1;
                }
                (_, Some(deadline)) => self.net.advance(deadline),
                (_, None) => return None,
            }
        }
    }

    /// Whom to tell that nothing will ever happen: the main program, or if that waits for another
    /// one to end, that one.
    fn whom_to_tell(&self) -> usize {
        let mut first = 0;
        for _ in 0..self.actors.len() {
            match self.actors[first].state {
                State::Waiting(Until::Ended(program), _) => first = program,
                _ => break,
            }
        }
        first
    }
}

impl Net {
    fn note_run(&mut self, actor: usize) {
        self.trace.add(self.now, Kind::Run, actor as u32, 0, 0);
    }
}
