//! Dropping an engine. Owns: the way from `drop` to the last descriptor closed. Invariant: memory that the
//! kernel may still use is leaked, whatever panics on the way.

use super::core::Core;
use super::{Engine, LEAKED};
use crate::backend::{Backend, with_backend};
use crate::completion::Completions;
use crate::id::Key;
use crate::table::Table;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_child() {
            // All of it is the parent's: rings that are not even mapped here, descriptors, and payloads
            // whose owners never gave this process anything.
            self.core.leak();
            self.backend.leak();
            std::mem::forget(self.watch.take());
            return;
        }
        let mut panics = Panics::default();
        let (core, let_go) = (&mut *self.core, with_backend!(&*self.backend, backend => backend.is_gone()));
        let clean = if let_go {
            with_backend!(&mut *self.backend, backend => backend.abandon());
            true
        } else {
            core.now = with_backend!(&*self.backend, backend => backend.now());
            let ended = with_backend!(&mut *self.backend, backend => core.shut_down(&mut **backend, &mut panics));
            if ended.is_none() {
                self.backend.leak();
            }
            ended.unwrap_or(false)
        };
        let core = &mut *self.core;
        match clean {
            true => core.give_up(),
            false => {
                // The kernel may still read payloads and write into callers' buffers: they stay for ever.
                LEAKED.fetch_add(1, Ordering::Relaxed);
                std::mem::forget(std::mem::replace(&mut core.conns, Table::with_limit(0)));
            }
        }
        core.drop_payloads(&mut panics);
        panics.resume();
    }
}

impl Core {
    /// Ends everything, then the backend. True if the kernel has let go of all memory; `None` if the
    /// backend panicked on the way.
    fn shut_down<B: Backend>(&mut self, backend: &mut B, panics: &mut Panics) -> Option<bool> {
        let patience = self.config.teardown_max;
        let mut owners = Panics::default();
        let ended = panics.caught(|| self.tear_down(backend, patience, &mut owners));
        panics.take_over(owners);
        panics.caught(|| {
            let gone = backend.is_gone();
            backend.shut_down(patience) && (ended == Some(true) || gone)
        })
    }

    /// Ends everything at once and takes what comes of it, until nothing more came for `patience`. True if
    /// nothing is left; false at once in an engine that has failed, or fails here. Panics of payloads'
    /// owners go to `owners`.
    fn tear_down<B: Backend>(&mut self, backend: &mut B, patience: Duration, owners: &mut Panics) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let mut until = self.later(patience);
        let mut out = Completions::with_capacity(1024);
        let conns: Vec<Key> = self.conns.keys().collect();
        conns.into_iter().for_each(|key| self.end_phase(key));
        let listeners: Vec<Key> = self.listeners.keys().collect();
        for key in listeners {
            self.listeners.get_mut(key).expect("just listed").closing = true;
            self.mark_listener_dirty(key);
        }
        while !(self.conns.is_empty() && self.listeners.is_empty()) && self.now < until {
            self.flush(backend, &mut out);
            // Somebody may wait for the drop of what has left.
            self.drop_payloads(owners);
            let waiting = !self.has_staged() && !backend.has_next();
            if backend.wait(Some(if waiting { until } else { 0 })).is_err() {
                return false;
            }
            self.now = backend.now();
            while self.violation.is_none() && self.take_next(backend, &mut out) {
                out.drain();
                self.pending.clear();
                until = self.later(patience);
            }
            if let Some(violation) = self.violation.or_else(|| backend.violation()) {
                backend.distrust(violation);
                return false;
            }
        }
        self.conns.is_empty() && self.listeners.is_empty()
    }

    /// Gives up what queues still have, of connections that ended with what the backend stood on.
    fn give_up(&mut self) {
        let keys: Vec<Key> = self.conns.keys().collect();
        for key in keys {
            if let Some(queue) = self.conns.get_mut(key).and_then(|conn| conn.queue.as_mut()) {
                queue.give_up(&mut self.disposal);
            }
        }
    }

    fn drop_payloads(&mut self, panics: &mut Panics) {
        while self.disposal.has_payloads() {
            panics.caught(|| self.disposal.drop_payloads());
        }
    }
}

/// The first panic of several pieces of work, until all are done.
#[derive(Default)]
struct Panics(Option<Box<dyn Any + Send>>);

impl Panics {
    fn caught<T>(&mut self, work: impl FnOnce() -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(work));
        result.map_err(|panic| self.keep(panic)).ok()
    }

    fn take_over(&mut self, other: Panics) {
        if let Some(panic) = other.0 {
            self.keep(panic);
        }
    }

    fn keep(&mut self, panic: Box<dyn Any + Send>) {
        match &self.0 {
            None => self.0 = Some(panic),
            // Dropping it might be the next panic.
            Some(_) => std::mem::forget(panic),
        }
    }

    /// Lets the panic go on, unless there is one already that led here.
    fn resume(self) {
        match self.0 {
            Some(panic) if std::thread::panicking() => std::mem::forget(panic),
            Some(panic) => resume_unwind(panic),
            None => {}
        }
    }
}
