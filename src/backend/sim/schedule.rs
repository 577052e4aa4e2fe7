//! The scheduler of a world. Owns: the world behind its lock, its clock, and its programs.
//! Invariant: exactly one thread of a world runs at a time, and the world decides which, so threads
//! add no nondeterminism. Must not know: what programs do.
//!
//! Programs have threads so that they can block. A thread that waits says for what. Another one
//! that can run is then picked by a random number of the world. If none can run, the clock moves to
//! the next event or deadline until one can.

use super::NEVER;
use super::net::Net;
use super::sock::{ListenId, SockId};
use super::trace::Kind;
use crate::error::Halt;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// The virtual duration of a poll that does not wait, so that a loop of such polls moves the clock.
const POLL_COST_NS: u64 = 1_000;

/// How many waits of a program fail after the end of the world before a wait panics instead.
const CALLS_AFTER_END_MAX: u32 = 10_000;

thread_local! {
    /// The number of the program that this thread runs, and the address of its world, which is only
    /// compared.
    static ACTOR: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Engine(u32),
    Connected(SockId),
    Readable(SockId),
    Writable(SockId),
    Queued(ListenId),
    /// A program has ended.
    Ended(usize),
    /// Any other program ran, or any event happened, since this count of [`Inner::progress`].
    Progress(u64),
    /// Only the deadline.
    Time,
}

/// A program and its state.
#[derive(Debug)]
struct Actor {
    wakeup: Arc<Condvar>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Waiting(Until, Option<u64>),
    Ended,
}

/// A world, under its lock.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) net: Net,
    actors: Vec<Actor>,
    /// The program that runs.
    current: usize,
    /// Counts events and switches between programs.
    pub(crate) progress: u64,
    /// The world has ended: each wait fails.
    pub(crate) ended: bool,
    calls_after_end: u32,
}

/// A world, shared by its programs, hosts and engines.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    /// A copy of the clock, to be read without the lock.
    now: AtomicU64,
    main: ThreadId,
}

impl Shared {
    pub(crate) fn new(seed: u64) -> Arc<Shared> {
        let main = Actor { wakeup: Arc::default(), state: State::Running };
        let inner = Inner {
            net: Net::new(seed),
            actors: vec![main],
            current: 0,
            progress: 0,
            ended: false,
            calls_after_end: 0,
        };
        Arc::new(Shared {
            inner: Mutex::new(inner),
            now: AtomicU64::new(0),
            main: thread::current().id(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of one program does not concern the others.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn publish(&self, inner: &Inner) {
        self.now.store(inner.net.now, Ordering::Relaxed);
    }

    /// Executes the next event, or moves the clock to the next deadline of an engine. False if
    /// there is neither.
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

    /// The program that the calling thread runs. The thread that created the world is program 0.
    ///
    /// # Panics
    /// If the thread runs no program of this world: two threads would run at a time.
    fn current_actor(&self) -> usize {
        match ACTOR.get() {
            (own, world) if world == std::ptr::from_ref(self).addr() => own,
            _ if thread::current().id() == self.main => {
                ACTOR.set((0, std::ptr::from_ref(self).addr()));
                0
            }
            _ => panic!("only programs that the world spawned can wait in it"),
        }
    }

    /// Waits. `Ok(false)` if the deadline came first.
    pub(crate) fn wait(&self, until: Until, deadline: Option<u64>) -> Result<bool, Halt> {
        let own = self.current_actor();
        let mut inner = self.lock();
        if inner.ended {
            inner.calls_after_end += 1;
            assert!(
                inner.calls_after_end < CALLS_AFTER_END_MAX,
                "a program does not end after the end of its simulated world"
            );
            return Err(Halt::Ended);
        }
        if inner.is_ready(until) {
            return Ok(true);
        }
        // A wait with a timeout of zero takes some virtual time too, in which others may run.
        let deadline = deadline
            .filter(|deadline| *deadline < NEVER)
            .map(|deadline| deadline.max(inner.net.now + POLL_COST_NS));
        inner.actors[own].state = State::Waiting(until, deadline);
        loop {
            let next = inner.next_runnable();
            self.publish(&inner);
            let first = next.unwrap_or_else(|| inner.actor_to_halt());
            inner = self.switch_to(inner, own, first);
            let ready = inner.is_ready(until);
            let result = match deadline.is_some_and(|deadline| deadline <= inner.net.now) {
                _ if inner.ended => Err(Halt::Ended),
                in_time if ready || in_time => Ok(ready),
                // No event and no deadline is left.
                _ if next.is_none() && first == own => Err(Halt::AtRest),
                _ => continue,
            };
            inner.actors[own].state = State::Running;
            return result;
        }
    }

    /// Lets another thread run, and waits until this one is switched to.
    fn switch_to<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        own: usize,
        next: usize,
    ) -> MutexGuard<'a, Inner> {
        if next != own {
            inner.progress += 1;
            inner.net.trace_run(next);
            inner.current = next;
            inner.actors[next].wakeup.notify_one();
            let wakeup = Arc::clone(&inner.actors[own].wakeup);
            inner = wakeup
                .wait_while(inner, |inner| inner.current != own)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inner
    }

    /// Adds a program, which first runs when others wait.
    pub(crate) fn add_actor(&self) -> usize {
        let mut inner = self.lock();
        let now = inner.net.now;
        inner
            .actors
            .push(Actor { wakeup: Arc::default(), state: State::Waiting(Until::Time, Some(now)) });
        inner.actors.len() - 1
    }

    /// On the thread of a new program: waits until it is switched to. False if the world has ended.
    pub(crate) fn begin_actor(&self, own: usize) -> bool {
        ACTOR.set((own, std::ptr::from_ref(self).addr()));
        let inner = self.lock();
        let wakeup = Arc::clone(&inner.actors[own].wakeup);
        let mut inner = wakeup
            .wait_while(inner, |inner| inner.current != own)
            .unwrap_or_else(PoisonError::into_inner);
        inner.actors[own].state = State::Running;
        !inner.ended
    }

    /// On the thread of a program that has ended: switches to another one.
    pub(crate) fn end_actor(&self, own: usize) {
        let mut inner = self.lock();
        inner.actors[own].state = State::Ended;
        inner.progress += 1;
        // At the end of the world, the main thread switches to each program in turn.
        let next = if inner.ended {
            0
        } else {
            inner.next_runnable().unwrap_or_else(|| inner.actor_to_halt())
        };
        self.publish(&inner);
        inner.net.trace_run(next);
        inner.current = next;
        inner.actors[next].wakeup.notify_one();
    }

    pub(crate) fn has_ended(&self, actor: usize) -> bool {
        self.lock().actors[actor].state == State::Ended
    }

    /// Ends the world: lets each program run until it ends; its waits fail.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        for actor in 1..inner.actors.len() {
            inner.calls_after_end = 0;
            while inner.actors[actor].state != State::Ended {
                inner = self.switch_to(inner, 0, actor);
            }
        }
        inner.calls_after_end = 0;
    }
}

impl Inner {
    fn is_ready(&self, until: Until) -> bool {
        match until {
            Until::Engine(engine) => {
                let state = &self.net.engines[engine as usize];
                state.ready_len() > 0 || state.is_dead() || state.waker_shared.is_notified()
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

    /// Whether a waiting program can run now.
    fn is_runnable(&self, actor: &Actor) -> bool {
        match actor.state {
            State::Waiting(until, deadline) => {
                deadline.is_some_and(|deadline| deadline <= self.net.now) || self.is_ready(until)
            }
            _ => false,
        }
    }

    /// Picks a waiting program that can run, and moves the clock until one can. `None`: no event
    /// and no deadline is left.
    fn next_runnable(&mut self) -> Option<usize> {
        loop {
            let runnable =
                self.actors.iter().filter(|actor| self.is_runnable(actor)).count() as u64;
            if runnable > 0 {
                let choice = if runnable > 1 { self.net.rng.below(runnable) as usize } else { 0 };
                let mut runnable =
                    self.actors.iter().enumerate().filter(|(_, actor)| self.is_runnable(actor));
                return runnable.nth(choice).map(|(index, _)| index);
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

    /// The program whose wait fails with [`Halt::AtRest`]: the main program, or the one for whose
    /// end that waits.
    fn actor_to_halt(&self) -> usize {
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
    fn trace_run(&mut self, actor: usize) {
        self.trace.add(self.now, Kind::Run, actor as u32, 0, 0);
    }
}
