//! What the examples share: the options that choose a backend, the echo server and the load generator as parts, CPU time.
#![allow(dead_code)]

pub mod echo;
pub mod load;
pub mod redis;

use proactor::{Backend, Capability, Config, Engine, Tier, Waker};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub type Failure = Box<dyn std::error::Error>;

/// Which backend to run on.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct BackendArgs {
    /// io_uring, epoll, or io_uring where the kernel allows it
    #[arg(long, default_value = "auto", value_parser = ["auto", "uring", "epoll"])]
    pub backend: String,
    /// How io_uring is used; the best that works if left out
    #[arg(long, value_parser = ["deferred", "multishot", "oneshot", "polled"])]
    pub tier: Option<String>,
    /// Capabilities to do without, separated by commas (as in PROACTOR_DISABLE)
    #[arg(long, default_value = "", value_name = "LIST", hide_default_value = true)]
    pub disable: String,
}

impl BackendArgs {
    pub fn config(&self) -> Result<Config, Failure> {
        let mut config = Config::default();
        if let Some(backend) = Backend::from_name(&self.backend) {
            config = config.backend(backend);
        }
        if let Some(tier) = self.tier.as_deref().and_then(Tier::from_name) {
            config = config.tier(tier);
        }
        for capability in Capability::parse_list(&self.disable).map_err(|why| format!("--disable: {why}"))? {
            config = config.disable(capability);
        }
        Ok(config)
    }

    pub fn engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::new(self.config()?)?)
    }
}

/// Runs an example; an error is printed and makes the exit status 1.
pub fn main(run: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    // Ends quietly when whoever reads the output goes away, as other tools do. Sockets are not concerned: the engine's sends raise no
    // signal.
    // SAFETY: restores the default disposition, before any other thread runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that SIGINT and SIGTERM set, waking the engine.
pub fn stop_on_signals(waker: Waker) -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        flag.store(true, Ordering::Release);
        waker.wake();
    })?;
    Ok(stop)
}

/// CPU time, user and system, of this process or of the calling thread.
pub fn cpu_time(whole_process: bool) -> Duration {
    let who = if whole_process { libc::RUSAGE_SELF } else { libc::RUSAGE_THREAD };
    // SAFETY: zero is a valid rusage, and it lives through the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
