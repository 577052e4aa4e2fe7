//! Dropping an engine. Owns: the order of its steps. Invariant: no payload is dropped before the
//! backend is shut down, and a panic in the drop of a payload skips no step. Must not know what the
//! backend has in flight.

use super::{Core, Engine, LEAKED};
use crate::backend::{Backend, with_backend};
use crate::completion::Completions;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_child() {
            // The parent owns all of it. The rings are not mapped here, and the drop of a payload
            // may have effects that belong to the parent.
            self.core.leak();
            self.backend.leak();
            std::mem::forget(self.poll_fd.take());
            return;
        }
        let timeout = self.core.config.teardown_max;
        let ended = with_backend!(&*self.backend, backend => backend.has_ended());
        if !ended && self.core.failed.is_none() {
            self.refresh_clock();
            with_backend!(&mut *self.backend, backend => {
                self.core.tear_down(&mut **backend, timeout)
            });
        }
        // The backend leaks the memory that the kernel may still use.
        if !with_backend!(&mut *self.backend, backend => backend.shut_down(timeout)) {
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
    /// Terminates all connections and listeners, and handles completions until all have ended or
    /// nothing has completed for `timeout`.
    fn tear_down<B: Backend>(&mut self, backend: &mut B, timeout: Duration) {
        let mut until = self.deadline_after(timeout);
        let mut out = Completions::with_capacity(1024);
        self.endpoints.conn_keys().into_iter().for_each(|key| self.begin_termination(key));
        self.endpoints.listener_keys().into_iter().for_each(|key| self.begin_close_listener(key));
        // One round even if `timeout` is zero: it frees the memory of what completes at once.
        while !self.endpoints.is_empty() {
            self.flush(backend, &mut out);
            let may_block = self.staging.is_empty() && !backend.has_next();
            if backend.wait(Some(if may_block { until } else { 0 })).is_err() {
                return;
            }
            self.now = backend.now();
            while self.process_next(backend, &mut out) {
                out.drain();
                self.delivery.clear();
                until = self.deadline_after(timeout);
            }
            if self.now >= until && self.staging.is_empty() && !backend.has_next() {
                return;
            }
        }
    }

    /// Retires all payloads that are still queued.
    fn retire_all(&mut self) {
        for key in self.endpoints.conn_keys() {
            if let Some(conn) = self.endpoints.conn_mut(key) {
                conn.send.retire(&mut self.send_memory);
            }
        }
    }
}
