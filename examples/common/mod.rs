//! What the examples share: the options that choose and tune a backend, the echo server, the load
//! generator and the Redis client without their command lines, signals, CPU time.
#![allow(dead_code)]

pub mod echo;
pub mod load;
pub mod redis;

use proactor::{Backend, Capability, Config, Engine, Tier, Tuning, Waker, ZeroCopy};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub type Failure = Box<dyn std::error::Error>;

/// The options that choose and tune a backend.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct BackendArgs {
    /// The backend; `auto` is io_uring where the kernel allows it, else epoll
    #[arg(long, default_value = "auto", value_parser = ["auto", "uring", "epoll"])]
    pub backend: String,
    /// The tier of io_uring [default: the best that this kernel has]
    #[arg(long, value_parser = ["deferred", "multishot", "oneshot", "polled"])]
    pub tier: Option<String>,
    /// Capabilities not to use, separated by commas (like PROACTOR_DISABLE)
    #[arg(long, default_value = "", value_name = "LIST", hide_default_value = true)]
    pub disable: String,
    /// Number and size of the receive buffers
    #[arg(long, value_name = "COUNTxBYTES", value_parser = count_and_size)]
    pub buffers: Option<(u32, u32)>,
    /// How long a poll looks for completions before it sleeps
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, hide_default_value = true)]
    pub spin: u64,
    /// Arm a multishot receive as soon as a connection is open
    #[arg(long)]
    pub fixed_receives: bool,
    /// Start no send before `Connected` or `Accepted` was delivered
    #[arg(long)]
    pub no_early_sends: bool,
    /// How many bytes a poll receives before it returns (epoll)
    #[arg(long, value_name = "BYTES")]
    pub turn_bytes: Option<usize>,
    /// How many completions with data one connection gets in a poll while others wait
    #[arg(long)]
    pub budget: Option<u32>,
    /// How many payloads one send operation takes at most
    #[arg(long)]
    pub gather: Option<usize>,
    /// Send payloads of at least this size by zero-copy, on loopback too
    #[arg(long, value_name = "BYTES")]
    pub zero_copy: Option<usize>,
}

fn count_and_size(text: &str) -> Result<(u32, u32), String> {
    let pair = text
        .split_once('x')
        .and_then(|(count, size)| Some((count.parse().ok()?, size.parse().ok()?)));
    pair.ok_or_else(|| "expected COUNTxBYTES, for instance 64x65536".into())
}

impl BackendArgs {
    pub fn config(&self) -> Result<Config, Failure> {
        let mut config = Config::default().spin(Duration::from_micros(self.spin));
        let mut tuning = Tuning::default()
            .adaptive_receives(!self.fixed_receives)
            .early_sends(!self.no_early_sends);
        if let Some(backend) = Backend::from_name(&self.backend) {
            config = config.backend(backend);
        }
        if let Some(tier) = self.tier.as_deref().and_then(Tier::from_name) {
            config = config.tier(tier);
        }
        for capability in
            Capability::parse_list(&self.disable).map_err(|why| format!("--disable: {why}"))?
        {
            config = config.disable(capability);
        }
        if let Some((count, size)) = self.buffers {
            config = config.buffers(count, size);
        }
        if let Some(bytes) = self.turn_bytes {
            tuning = tuning.turn_bytes(bytes);
        }
        if let Some(budget) = self.budget {
            tuning = tuning.budget(budget);
        }
        if let Some(gather) = self.gather {
            tuning = tuning.gather_max(gather);
        }
        if let Some(bytes) = self.zero_copy {
            tuning = tuning.zero_copy(ZeroCopy::Always(bytes));
        }
        Ok(config.tuning(tuning))
    }

    pub fn engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::new(self.config()?)?)
    }
}

/// Runs an example. Prints its error and exits with status 1 if it fails.
pub fn main(run: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    // If the reader of the output is gone, SIGPIPE ends the process, as with other command line
    // tools. It cannot come from a socket: the engine sends with MSG_NOSIGNAL.
    // SAFETY: restores the default disposition before any other thread runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that SIGINT and SIGTERM set; they also wake the engine. The signal handler does both
/// itself, without a thread: in a process of one thread each system call on a descriptor is a
/// little cheaper, because the kernel does not count references to it.
pub fn stop_on_signals(waker: Waker) -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let (flag, waker) = (Arc::clone(&stop), waker.clone());
        let handler = move || {
            flag.store(true, Ordering::Release);
            waker.wake();
        };
        // SAFETY: an atomic store and `Waker::wake` are safe in signal handlers.
        unsafe { signal_hook::low_level::register(signal, handler)? };
    }
    Ok(stop)
}

/// The CPU time, user and system, of this process or of the calling thread.
pub fn cpu_time(whole_process: bool) -> Duration {
    let who = if whole_process { libc::RUSAGE_SELF } else { libc::RUSAGE_THREAD };
    // SAFETY: zero is a valid rusage, and it outlives the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
