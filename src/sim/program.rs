//! Programs of a simulated world. Owns: the thread of a program, and its result. Invariant: the
//! thread runs only while the scheduler has switched to it. Must not know: what a program does.

use crate::backend::sim::{Shared, Until};
use crate::error::Halt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// A program of a world: see [`World::spawn`](super::World::spawn).
#[derive(Debug)]
pub struct Program<T> {
    world: Arc<Shared>,
    actor: usize,
    result: Arc<Mutex<Option<thread::Result<T>>>>,
}

impl<T: Send + 'static> Program<T> {
    /// Starts a program on a thread of its own, and returns the thread too.
    pub(super) fn spawn(
        world: &Arc<Shared>,
        name: &str,
        program: impl FnOnce() -> T + Send + 'static,
    ) -> (Program<T>, JoinHandle<()>) {
        let (world, result) = (Arc::clone(world), Arc::new(Mutex::new(None)));
        let actor = world.add_actor();
        let handle = Program { world: Arc::clone(&world), actor, result: Arc::clone(&result) };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if world.begin_actor(actor) {
                let ended = catch_unwind(AssertUnwindSafe(program));
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            }
            world.end_actor(actor);
        });
        (handle, thread.expect("the system creates a thread"))
    }
}

impl<T> Program<T> {
    /// Waits until the program has ended, and returns its result.
    ///
    /// # Errors
    /// The payload of its panic; the text of a [`Halt`] if the world ended or came to rest first.
    pub fn join(self) -> thread::Result<T> {
        let waited = if self.is_finished() {
            Ok(true)
        } else {
            self.world.wait(Until::Ended(self.actor), None)
        };
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.unwrap_or_else(|| Err(Box::new(waited.err().unwrap_or(Halt::Ended).to_string())))
    }

    /// True if the program has ended.
    pub fn is_finished(&self) -> bool {
        self.world.has_ended(self.actor)
    }
}
