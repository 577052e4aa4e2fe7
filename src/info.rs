//! What an engine stands on. Owns: the report; nothing is decided here.

use crate::caps::{CapabilityReport, Caps};
use crate::error::Errno;
use crate::tier::{Backend, Tier};
use std::fmt;

/// Why an engine that was free to choose did not take io_uring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// What the kernel answered, if it was an error number that decided.
    pub errno: Option<Errno>,
    /// What it came from, as far as can be told.
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

/// Limits of the process that bound an engine. `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_NOFILE: descriptors, soft limit.
    pub nofile: Option<u64>,
    /// RLIMIT_MEMLOCK in bytes, soft limit: bounds the rings of users without CAP_IPC_LOCK.
    pub memlock_bytes: Option<u64>,
}

/// What an engine stands on, which capabilities it uses, and why not the others. Prints as a
/// readable report.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Info {
    /// The backend in use.
    pub backend: Backend,
    /// The tier in use; `None` on epoll.
    pub tier: Option<Tier>,
    /// Why epoll, if io_uring was wanted or allowed.
    pub fallback: Option<Fallback>,
    /// What was made smaller or left out on the way, for instance rings under a low RLIMIT_MEMLOCK.
    pub notes: Vec<String>,
    /// Submission and completion queue entries; zero on epoll.
    pub ring_entries: (u32, u32),
    /// Number and size in bytes of the receive buffers.
    pub buffers: (u32, u32),
    /// Limits of the process.
    pub limits: Limits,
    /// The kernel's release, as uname(2) has it. For people: no decision is based on it.
    pub kernel: String,
    pub(crate) caps: Caps,
}

impl Info {
    /// Each capability with its state and the reason.
    pub fn capabilities(&self) -> &[CapabilityReport] {
        self.caps.reports()
    }

    /// The tier's name, or `none`.
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
