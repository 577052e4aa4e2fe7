//! The open loop: each request is sent when it is due, even if responses are missing, and its
//! latency counts from that moment, so that a stall of the server shows in full (no coordinated
//! omission). Owns: when requests are due. It never sleeps, and sends one request between two
//! polls, so that a burst of due requests does not delay the responses.

use crate::load::Load;
use crate::sys::Addr;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

/// How long it waits for the last responses.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

pub struct OpenLoop {
    load: Load,
    /// For each connection, when its unanswered requests were due.
    due: Vec<VecDeque<Instant>>,
}

impl OpenLoop {
    pub fn connect(addr: &Addr, conns: usize, size: usize) -> io::Result<OpenLoop> {
        let load = Load::connect(addr, conns, size, 0)?;
        Ok(OpenLoop { load, due: vec![VecDeque::new(); conns] })
    }

    /// Sends for `warm_up` and `duration` at `rate`, in requests per second over all connections,
    /// then waits for the last responses. Returns the latencies in nanoseconds, without those of
    /// the warm-up.
    pub fn run(
        &mut self,
        rate: f64,
        warm_up: Duration,
        duration: Duration,
    ) -> io::Result<Histogram<u64>> {
        let interval = Duration::from_secs_f64(1.0 / rate);
        let mut latencies =
            Histogram::new_with_bounds(100, 60_000_000_000, 3).map_err(io::Error::other)?;
        let (start, conns) = (Instant::now(), self.due.len());
        let (counts_from, end) = (start + warm_up, start + warm_up + duration);
        let (mut next_due, mut next, mut unanswered) = (start, 0, 0);
        loop {
            let now = Instant::now();
            if next_due < end && next_due <= now {
                self.due[next].push_back(next_due);
                self.load.send(next, 1)?;
                next = (next + 1) % conns;
                next_due += interval;
                unanswered += 1;
            }
            if next_due >= end && unanswered == 0 {
                return Ok(latencies);
            }
            if now > end + DRAIN_TIMEOUT {
                return Err(io::Error::other(format!(
                    "{unanswered} requests were not answered in {DRAIN_TIMEOUT:?}"
                )));
            }
            let due = &mut self.due;
            self.load.poll(|index, answers| {
                let now = Instant::now();
                for due in due[index].drain(..answers) {
                    unanswered -= 1;
                    if due >= counts_from {
                        latencies.saturating_record((now - due).as_nanos() as u64);
                    }
                }
            })?;
        }
    }
}
