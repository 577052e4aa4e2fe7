//! Selects the backend of an engine. Owns: the order of preference, the fallback to epoll, and the
//! text of its reason. Invariant: a backend or tier that was configured by name is used, or
//! [`open`] fails. Must not know operations.

use super::epoll::EpollBackend;
use super::uring::setup::{self, NoRing};
use super::{AnyBackend, Parameters};
use crate::backend::uring::Refusal;
use crate::caps::{Capability, CapabilityState, Caps};
use crate::config::Config;
use crate::error::{Errno, Error};
use crate::id::EngineNumber;
use crate::info::{Fallback, Info, Limits};
use crate::sys;
use crate::tier::Backend;
use crate::waker::WakerShared;
use std::sync::Arc;

/// Makes the configured backend, or the best one that is available.
pub(crate) fn open(
    config: &Config,
    engine: EngineNumber,
    waker_shared: &Arc<WakerShared>,
) -> Result<(AnyBackend, Info), Error> {
    let uring_required = config.backend == Some(Backend::Uring) || config.tier.is_some();
    #[cfg(feature = "sim")]
    if config.backend == Some(Backend::Sim) {
        let why = "a simulated engine needs a world: `sim::World::engine` makes one".to_owned();
        return Err(Error::Unsupported { what: "backend `sim`".to_owned(), why });
    }
    if config.backend == Some(Backend::Epoll) {
        return open_epoll(
            config,
            engine,
            waker_shared,
            None,
            Caps::not_probed("backend `epoll` is configured"),
        );
    }
    let (fallback, caps) = match setup::open(config, engine, waker_shared) {
        Ok(opened) => {
            let info = Info {
                backend: Backend::Uring,
                tier: Some(opened.tier),
                fallback: None,
                notes: opened.notes,
                ring_entries: opened.ring_entries,
                buffers: opened.buffers,
                limits: limits(),
                kernel: sys::kernel_release(),
                caps: opened.caps,
            };
            return Ok((AnyBackend::Uring(Box::new(opened.backend)), info));
        }
        Err(NoRing::Error(error)) => return Err(error),
        Err(NoRing::NoTier { tier, why, caps }) if config.tier.is_none() => (
            Fallback { errno: None, cause: format!("tier `{tier}` is not available: {why}") },
            caps,
        ),
        Err(NoRing::NoTier { tier, why, .. }) => {
            return Err(Error::Unsupported { what: format!("tier `{tier}`"), why });
        }
        Err(NoRing::Refused(refusal)) => {
            let fallback = fallback_after(refusal);
            let caps = Caps::not_probed(&format!("no io_uring: {fallback}"));
            (fallback, caps)
        }
    };
    if uring_required {
        let what =
            config.tier.map_or("backend `uring`".to_owned(), |tier| format!("tier `{tier}`"));
        return Err(Error::Unsupported { what, why: fallback.to_string() });
    }
    open_epoll(config, engine, waker_shared, Some(fallback), caps)
}

fn open_epoll(
    config: &Config,
    engine: EngineNumber,
    waker_shared: &Arc<WakerShared>,
    fallback: Option<Fallback>,
    mut caps: Caps,
) -> Result<(AnyBackend, Info), Error> {
    match (config.switched_off(Capability::EpollPwait2), EpollBackend::try_precise_wait()) {
        (Some(disabled_by), _) => {
            caps.set(Capability::EpollPwait2, CapabilityState::Unused, disabled_by)
        }
        (None, Ok(())) => caps.used(Capability::EpollPwait2),
        (None, Err(errno)) => {
            caps.set(Capability::EpollPwait2, CapabilityState::Missing, errno.to_string())
        }
    }
    let parameters = Parameters::new(config, engine, true);
    let buffers = parameters.buffers;
    let precise = caps.uses(Capability::EpollPwait2);
    let backend = EpollBackend::new(parameters, Arc::clone(waker_shared), precise)?;
    let info = Info {
        backend: Backend::Epoll,
        tier: None,
        fallback,
        notes: Vec::new(),
        ring_entries: (0, 0),
        buffers,
        limits: limits(),
        kernel: sys::kernel_release(),
        caps,
    };
    Ok((AnyBackend::Epoll(Box::new(backend)), info))
}

fn limits() -> Limits {
    Limits { nofile: sys::limit_nofile(), memlock_bytes: sys::limit_memlock() }
}

/// The fallback after a refusal, with its likely cause.
fn fallback_after(refusal: Refusal) -> Fallback {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let seccomp = status
        .lines()
        .any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
    let memlock_bytes = sys::limit_memlock();
    explain(refusal, sysctl.as_deref().map(str::trim), seccomp, memlock_bytes)
}

/// The likely cause of a refusal, from the sysctl `kernel.io_uring_disabled`, from whether this
/// process has a seccomp filter, and from RLIMIT_MEMLOCK.
fn explain(
    refusal: Refusal,
    sysctl: Option<&str>,
    seccomp: bool,
    memlock_bytes: Option<u64>,
) -> Fallback {
    let errno = match refusal {
        Refusal::Setup(errno) | Refusal::Enter(errno) => Some(errno),
        Refusal::NoStableFeatures | Refusal::NoSocketOps => None,
    };
    let cause = match refusal {
        Refusal::Setup(errno) => setup_cause(errno, sysctl, seccomp, memlock_bytes),
        Refusal::Enter(_) if seccomp => {
            "seccomp: io_uring_setup is allowed, io_uring_enter is not".to_owned()
        }
        Refusal::Enter(_) => "io_uring_enter was refused after io_uring_setup succeeded: an LSM, \
                              or a filter outside of this process"
            .to_owned(),
        Refusal::NoStableFeatures => {
            "the kernel's io_uring lacks NODROP or SUBMIT_STABLE (5.5 has them)".to_owned()
        }
        Refusal::NoSocketOps => {
            "the kernel's io_uring lacks operations on sockets (5.6 has them)".to_owned()
        }
    };
    Fallback { errno, cause }
}

fn setup_cause(
    errno: Errno,
    sysctl: Option<&str>,
    seccomp: bool,
    memlock_bytes: Option<u64>,
) -> String {
    let cause = match (errno.0, sysctl) {
        (libc::EPERM, Some("2")) => {
            "io_uring_disabled=2: the sysctl kernel.io_uring_disabled forbids it to everybody"
        }
        (libc::EPERM, Some("1")) => {
            "io_uring_disabled=1: the sysctl kernel.io_uring_disabled leaves it to CAP_SYS_ADMIN \
             and the group kernel.io_uring_group"
        }
        (libc::EPERM, _) if seccomp => {
            "seccomp: a filter forbids io_uring_setup (Docker's default profile does since \
             version 25)"
        }
        (libc::EPERM, _) => "seccomp or an LSM forbids io_uring_setup",
        (libc::ENOSYS, None) if seccomp => {
            "the kernel has no io_uring (5.1 has it), or the seccomp filter of this process \
             answers ENOSYS"
        }
        (libc::ENOSYS, None) => {
            "the kernel has no io_uring (5.1 has it), or it is built without it"
        }
        (libc::ENOSYS, Some(_)) if seccomp => {
            "seccomp: a filter answers ENOSYS (Podman's default profile does), although the \
             kernel has it"
        }
        (libc::ENOSYS, Some(_)) => {
            "not offered here, although the kernel has the sysctl for it: a sandbox such as gVisor"
        }
        (libc::ENOMEM, _) => match memlock_bytes {
            Some(bytes) => {
                return format!(
                    "not enough memory for the smallest ring: RLIMIT_MEMLOCK is {bytes} bytes, \
                     and there is no CAP_IPC_LOCK"
                );
            }
            None => "not enough memory for the smallest ring",
        },
        _ => "io_uring_setup failed",
    };
    cause.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_own_cause() {
        let cause = |number, sysctl, seccomp, memlock_bytes| {
            explain(Refusal::Setup(Errno(number)), sysctl, seccomp, memlock_bytes).to_string()
        };
        assert!(
            cause(libc::EPERM, Some("2"), false, None).starts_with("EPERM: io_uring_disabled=2")
        );
        assert!(
            cause(libc::EPERM, Some("1"), true, None).starts_with("EPERM: io_uring_disabled=1")
        );
        assert!(cause(libc::EPERM, Some("0"), true, None).starts_with("EPERM: seccomp: a filter"));
        assert!(cause(libc::ENOSYS, None, false, None).contains("the kernel has no io_uring"));
        assert!(cause(libc::ENOSYS, Some("0"), true, None).contains("Podman"));
        assert!(
            cause(libc::ENOMEM, Some("0"), false, Some(0)).contains("RLIMIT_MEMLOCK is 0 bytes")
        );
        let enter = explain(Refusal::Enter(Errno(libc::EPERM)), Some("0"), true, None).to_string();
        assert!(enter.contains("io_uring_enter is not"), "{enter}");
    }
}
