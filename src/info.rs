//! The report about an engine. Owns: its fields and its text form. Invariant: it does not change
//! after the engine is made. Must not decide anything: `backend::select` fills it.

use crate::caps::{CapabilityReport, Caps};
use crate::error::Errno;
use crate::tier::{Backend, Tier};
use std::fmt;

/// Why an engine whose configuration allows io_uring uses epoll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The error number of the kernel, if an error was the reason.
    pub errno: Option<Errno>,
    /// The cause, as far as it could be determined.
    pub cause: String,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "{errno:?}: {}", self.cause),
            None => f.write_str(&self.cause),
        }
    }
}

/// Limits of the process that affect an engine (getrlimit(2)). `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Soft limit of RLIMIT_NOFILE: the number of descriptors.
    pub nofile: Option<u64>,
    /// Soft limit of RLIMIT_MEMLOCK in bytes. The memory of rings counts against it for users
    /// without CAP_IPC_LOCK.
    pub memlock_bytes: Option<u64>,
}

/// The backend, tier and capabilities of an engine, with the reasons for those not in use. See
/// [`Engine::info`](crate::Engine::info). `Display` prints a report of several lines.
///
/// ```
/// use proactor::{Backend, Capability, CapabilityState, Config, Engine};
/// let engine = Engine::new(Config::default().backend(Backend::Epoll))?;
/// let info = engine.info();
/// assert_eq!((info.backend, info.tier), (Backend::Epoll, None));
/// for report in info.capabilities() {
///     if report.state != CapabilityState::Used {
///         println!("{} is {}: {}", report.capability, report.state, report.why);
///     }
/// }
/// println!("{info}");
/// # Ok::<(), proactor::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Info {
    /// The backend in use.
    pub backend: Backend,
    /// The tier in use. `None` on epoll.
    pub tier: Option<Tier>,
    /// Why the engine uses epoll, if the configuration allows io_uring.
    pub fallback: Option<Fallback>,
    /// Reductions and omissions, for instance smaller rings under a low RLIMIT_MEMLOCK.
    pub notes: Vec<String>,
    /// Number of submission queue entries and of completion queue entries. Zero on epoll.
    pub ring_entries: (u32, u32),
    /// Number of receive buffers, and the size of each in bytes.
    pub buffers: (u32, u32),
    /// Limits of the process.
    pub limits: Limits,
    /// The release of the kernel (uname(2)). For people only: the engine does not use it.
    pub kernel: String,
    pub(crate) caps: Caps,
}

impl Info {
    /// The state of each capability, in the order of [`REQUIREMENTS`](crate::REQUIREMENTS).
    pub fn capabilities(&self) -> &[CapabilityReport] {
        self.caps.reports()
    }

    /// The name of the tier. `none` if there is none.
    pub fn tier_name(&self) -> &'static str {
        self.tier.map_or("none", Tier::name)
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit =
            |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |value| value.to_string());
        writeln!(f, "backend   {}", self.backend)?;
        writeln!(f, "tier      {}", self.tier_name())?;
        match &self.fallback {
            Some(fallback) => writeln!(f, "fallback  {fallback}")?,
            None => writeln!(f, "fallback  none")?,
        }
        for note in &self.notes {
            writeln!(f, "note      {note}")?;
        }
        writeln!(f, "kernel    {}", self.kernel)?;
        writeln!(
            f,
            "rings     {} submission entries, {} completion entries",
            self.ring_entries.0, self.ring_entries.1
        )?;
        writeln!(f, "buffers   {} of {} bytes", self.buffers.0, self.buffers.1)?;
        writeln!(
            f,
            "limits    NOFILE {}, MEMLOCK {} bytes",
            limit(self.limits.nofile),
            limit(self.limits.memlock_bytes)
        )?;
        for report in self.capabilities() {
            writeln!(f, "{:<19} {:<10} {}", report.capability, report.state, report.why)?;
        }
        Ok(())
    }
}
