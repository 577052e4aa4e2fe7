//! Hand-written clients on epoll and on a bare ring: the baselines of the client side of the
//! library, which is the example `load`. They accept the options of `load` that matter here, and
//! print its output.

mod connect;
mod echo;
mod ring_connect;
mod ring_echo;
mod stream;

use crate::sys::Addr;
use clap::{Args, ValueEnum};
use std::io;
use std::time::Duration;

#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Mode {
    /// A number of requests in flight on each connection
    Echo,
    /// Connect, send one request, close
    Connect,
    /// Send messages, one write for each
    Stream,
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long, value_enum, default_value = "echo")]
    pub mode: Mode,
    #[arg(long, default_value_t = 64)]
    pub conns: usize,
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    #[arg(long, default_value_t = 1)]
    pub depth: usize,
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Use a bare ring instead of epoll (modes echo and connect)
    #[arg(long, conflicts_with = "edge")]
    pub ring: bool,
    /// Use edge-triggered epoll: one EPOLL_CTL_ADD per connection, SO_ERROR only on EPOLLERR or
    /// EPOLLHUP (mode connect)
    #[arg(long)]
    pub edge: bool,
    /// Call EPOLL_CTL_DEL before the close (mode connect)
    #[arg(long, conflicts_with = "ring")]
    pub delete: bool,
    /// Read SO_ERROR only on EPOLLERR or EPOLLHUP (mode connect)
    #[arg(long, conflicts_with = "ring")]
    pub no_so_error: bool,
    /// Send after the completion of the connect, instead of linked to it (--ring, mode connect)
    #[arg(long, requires = "ring")]
    pub unlinked: bool,
    /// Link the receive to the send, instead of waiting for its completion (--ring, mode connect)
    #[arg(long, requires = "ring")]
    pub early_receive: bool,
    /// Accepted like `load`; the output is always a line of JSON
    #[arg(long)]
    pub json: bool,
}

/// The result of a run.
pub struct Outcome {
    pub requests: u64,
    pub elapsed: Duration,
    pub latencies_us: Vec<u32>,
}

fn push(ring: &mut io_uring::IoUring, entry: io_uring::squeue::Entry) {
    // SAFETY: the memory that SQEs point to lives until the process ends.
    while unsafe { ring.submission().push(&entry) }.is_err() {
        ring.submit().expect("a full queue can be submitted");
    }
}

pub fn run(addr: &Addr, options: &Options) -> io::Result<()> {
    let cpu = crate::sys::cpu_ns(std::process::id())?;
    let mut outcome = match options.mode {
        Mode::Connect if options.ring => ring_connect::run(addr, options)?,
        Mode::Echo if options.ring => ring_echo::run(addr, options)?,
        _ if options.ring => {
            return Err(io::Error::other("--ring is for the modes echo and connect"));
        }
        Mode::Echo | Mode::Stream if options.edge => {
            return Err(io::Error::other("--edge is for mode connect"));
        }
        Mode::Echo => echo::run(addr, options)?,
        Mode::Connect => connect::run(addr, options)?,
        Mode::Stream => stream::run(addr, options)?,
    };
    let cpu = crate::sys::cpu_ns(std::process::id())? - cpu;
    outcome.latencies_us.sort_unstable();
    let quantile = |q: f64| {
        let last = outcome.latencies_us.len().saturating_sub(1);
        outcome.latencies_us.get((last as f64 * q) as usize).copied().unwrap_or(0)
    };
    let line = serde_json::json!({
        "requests": outcome.requests,
        "requests_per_s": outcome.requests as f64 / outcome.elapsed.as_secs_f64(),
        "cpu_us_per_request": cpu as f64 / 1e3 / outcome.requests.max(1) as f64,
        "p50_us": quantile(0.5), "p99_us": quantile(0.99),
    });
    println!("{line}");
    Ok(())
}
