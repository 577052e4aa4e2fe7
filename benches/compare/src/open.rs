//! The open loop: requests leave when they are due, whether answers come or not, and their time
//! counts from then, so that a server that stalls cannot hide what it kept waiting (no coordinated
//! omission). Owns: when what is due. It looks for work without ever sleeping, and sends one
//! request between two looks, so that a late one does not hold up the answers.

use crate::load::Load;
use crate::sys::Addr;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

/// The longest wait for what is not answered when the time is up.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct OpenLoop {
    load: Load,
    /// Of each connection: when its unanswered requests were due.
    due: Vec<VecDeque<Instant>>,
}

impl OpenLoop {
    pub fn connect(addr: &Addr, conns: usize, size: usize) -> io::Result<OpenLoop> {
        let load = Load::connect(addr, conns, size, 0)?;
        Ok(OpenLoop { load, due: vec![VecDeque::new(); conns] })
    }

    /// Sends so long at `rate`, in requests per second over all connections, waits for the last
    /// answers, and returns the nanoseconds that each request took. What was due in the first part,
    /// `warm_up`, does not count.
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
            if now > end + PATIENCE {
                return Err(io::Error::other(format!(
                    "{unanswered} requests were not answered in {PATIENCE:?}"
                )));
            }
            let due = &mut self.due;
            self.load.look(|index, answers| {
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
