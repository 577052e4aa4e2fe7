//! The atomic of the waker under every interleaving: no wake-up is lost, and the event fd is
//! written at most once per sleep.
//!
//! The file under test is compiled here with loom's atomics; in the crate it uses those of std.

#[path = "../src/waker/signal.rs"]
#[allow(dead_code)]
mod signal;

mod atomic {
    pub use loom::sync::atomic::{AtomicU8, Ordering};
}

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use signal::Signal;

/// A model of an eventfd: readable from a write to a read.
struct Event {
    readable: Mutex<bool>,
    changed: Condvar,
    writes: AtomicUsize,
}

struct Engine {
    signal: Signal,
    event: Event,
    /// How many times `wake` was called.
    inbox: AtomicUsize,
}

impl Engine {
    fn new() -> Arc<Engine> {
        Arc::new(Engine {
            signal: Signal::new(),
            event: Event {
                readable: Mutex::new(false),
                changed: Condvar::new(),
                writes: AtomicUsize::new(0),
            },
            inbox: AtomicUsize::new(0),
        })
    }

    fn wake(&self) {
        self.inbox.fetch_add(1, Ordering::Release);
        if self.signal.call() {
            self.event.writes.fetch_add(1, Ordering::Relaxed);
            *self.event.readable.lock().unwrap() = true;
            self.event.changed.notify_one();
        }
    }

    /// Sleeps until the event fd is readable, as a backend does.
    fn sleep(&self) {
        let mut readable = self.event.readable.lock().unwrap();
        while !*readable {
            readable = self.event.changed.wait(readable).unwrap();
        }
        *readable = false;
    }

    /// Polls until `wanted` calls were seen. A lost wake-up causes a deadlock, which loom reports.
    fn run(&self, wanted: usize, stay_asleep: bool) -> (usize, usize) {
        let (mut sleeps, mut woken) = (0, 0);
        while self.inbox.load(Ordering::Acquire) < wanted {
            if self.signal.may_sleep() {
                sleeps += 1;
                self.sleep();
            }
            woken += usize::from(self.signal.take(stay_asleep));
        }
        (sleeps, woken)
    }
}

fn model(wakers: usize, stay_asleep: bool) {
    let mut explore = loom::model::Builder::new();
    // With one waker every interleaving; with more, those with up to two preemptions.
    explore.preemption_bound = (wakers > 1).then_some(2);
    explore.check(move || {
        let engine = Engine::new();
        let threads: Vec<_> = (0..wakers)
            .map(|_| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || engine.wake())
            })
            .collect();
        let (sleeps, _) = engine.run(wakers, stay_asleep);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let writes = engine.event.writes.load(Ordering::Relaxed);
        // With `stay_asleep`, a call after the last sleep may write too.
        assert!(
            writes <= sleeps + usize::from(stay_asleep) * wakers,
            "{writes} writes, {sleeps} sleeps"
        );
        // Calls after the last check are seen by the next poll.
        assert!(engine.inbox.load(Ordering::Acquire) == wakers);
    });
}

#[test]
fn one_waker() {
    model(1, false);
    model(1, true);
}

#[test]
fn two_wakers() {
    model(2, false);
    model(2, true);
}

#[test]
fn a_call_before_the_sleep_is_seen_by_the_next_take() {
    loom::model(|| {
        let engine = Engine::new();
        let other = Arc::clone(&engine);
        let waker = thread::spawn(move || other.wake());
        waker.join().unwrap();
        assert!(!engine.signal.may_sleep(), "the waker was called");
        assert!(engine.signal.take(false));
        assert!(!engine.signal.take(false), "a second `Woken`");
    });
}
