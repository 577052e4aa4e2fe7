//! Dropping an engine. Owns: the order of its end. Invariant: no payload is dropped before the
//! backend is shut down, and a payload whose drop panics keeps nothing of this from happening.

use super::{Core, Engine, LEAKED};
use crate::backend::{Backend, with_backend};
use crate::completion::Completions;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_child() {
            // All of it is the parent's: rings that are not even mapped here, descriptors, and
            // payloads whose owners never gave this process anything.
            self.core.leak();
            self.backend.leak();
            std::mem::forget(self.poll_fd.take());
            return;
        }
        let patience = self.core.config.teardown_max;
        let gone = with_backend!(&*self.backend, backend => backend.is_gone());
        if !gone && self.core.failed.is_none() {
            self.refresh_clock();
            with_backend!(&mut *self.backend, backend => {
                self.core.tear_down(&mut **backend, patience)
            });
        }
        // What the kernel may still use is leaked when the backend is dropped.
        if !with_backend!(&mut *self.backend, backend => backend.shut_down(patience)) {
            LEAKED.fetch_add(1, Ordering::Relaxed);
        }
        self.core.retire_all();
        let mut panic = None;
        while self.core.send_memory.has_retired() {
            if let Err(payload) =
                catch_unwind(AssertUnwindSafe(|| self.core.send_memory.drop_retired()))
            {
                panic.get_or_insert(payload);
            }
        }
        if let Some(payload) = panic.filter(|_| !std::thread::panicking()) {
            resume_unwind(payload);
        }
    }
}

impl Core {
    /// Ends everything at once and takes what comes of it, until nothing more came for `patience`.
    fn tear_down<B: Backend>(&mut self, backend: &mut B, patience: Duration) {
        let mut until = self.deadline_after(patience);
        let mut out = Completions::with_capacity(1024);
        self.endpoints.conn_keys().into_iter().for_each(|key| self.begin_termination(key));
        self.endpoints.listener_keys().into_iter().for_each(|key| self.begin_close_listener(key));
        // Once also without any patience: what the kernel lets go of at once is freed.
        while !self.endpoints.is_empty() {
            self.flush(backend, &mut out);
            let waiting = self.staging.is_empty() && !backend.has_next();
            if backend.wait(Some(if waiting { until } else { 0 })).is_err() {
                return;
            }
            self.now = backend.now();
            while self.process_next(backend, &mut out) {
                out.drain();
                self.delivery.clear();
                until = self.deadline_after(patience);
            }
            if self.now >= until && self.staging.is_empty() && !backend.has_next() {
                return;
            }
        }
    }

    /// Gives up all payloads that are still queued.
    fn retire_all(&mut self) {
        for key in self.endpoints.conn_keys() {
            if let Some(conn) = self.endpoints.conn_mut(key) {
                conn.send.retire(&mut self.send_memory);
            }
        }
    }
}
