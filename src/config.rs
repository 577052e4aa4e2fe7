//! Configuration. Owns: the limits and options of an engine, their defaults, and their validation.
//! Invariant: an engine is made from a validated configuration only. Must not know how an option is
//! implemented. Sizes and techniques for benchmarks are in `tuning`.

use crate::caps::{CapSet, Capability};
use crate::error::Error;
use crate::tier::{Backend, Tier};
use crate::tuning::{Tuning, range, setters};
use std::time::Duration;

/// The configuration of an engine. Each method takes and returns the configuration, so that calls
/// chain.
///
/// [`Engine::new`](crate::Engine::new) reads the environment. `PROACTOR_BACKEND=uring|epoll|auto`
/// and `PROACTOR_TIER=NAME` set a backend and a tier that the configuration does not set.
/// `PROACTOR_DISABLE=LIST` adds to [`Config::disable`]. [`Config::ignore_environment`] turns this
/// off.
///
/// ```
/// use proactor::{Backend, Config, Engine};
/// let engine = Engine::new(Config::default().backend(Backend::Epoll).connections_max(10_000))?;
/// # Ok::<(), proactor::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) backend: Option<Backend>,
    pub(crate) tier: Option<Tier>,
    pub(crate) disabled: CapSet,
    /// The part of `disabled` that came from the environment. Reports name the source.
    pub(crate) disabled_by_environment: CapSet,
    pub(crate) ignore_environment: bool,
    pub(crate) hardened: bool,
    pub(crate) connections_max: usize,
    pub(crate) listeners_max: usize,
    pub(crate) timers_max: usize,
    pub(crate) buffers: Option<(u32, u32)>,
    pub(crate) send_high_watermark: usize,
    pub(crate) send_low_watermark: usize,
    pub(crate) spin: Duration,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) linger: Duration,
    pub(crate) fin_wait: Duration,
    pub(crate) teardown_max: Duration,
    pub(crate) tuning: Tuning,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            backend: None,
            tier: None,
            disabled: CapSet::default(),
            disabled_by_environment: CapSet::default(),
            ignore_environment: false,
            hardened: false,
            connections_max: 262_144,
            listeners_max: 1024,
            timers_max: 4 << 20,
            buffers: None,
            send_high_watermark: 1 << 20,
            send_low_watermark: 256 << 10,
            spin: Duration::ZERO,
            connect_timeout: Some(Duration::from_secs(30)),
            idle_timeout: None,
            linger: Duration::from_secs(10),
            fin_wait: Duration::from_millis(250),
            teardown_max: Duration::from_secs(1),
            tuning: Tuning::default(),
        }
    }
}

impl Config {
    /// Requires a backend. [`Engine::new`](crate::Engine::new) fails with [`Error::Unsupported`]
    /// and the reason if it is unavailable. Default: io_uring where the kernel allows it, else
    /// epoll.
    pub fn backend(mut self, backend: Backend) -> Config {
        self.backend = Some(backend);
        self
    }

    /// Requires a tier of the io_uring backend, and therefore that backend. Default: the first of
    /// `deferred`, `multishot` and `oneshot` that works on this kernel.
    pub fn tier(mut self, tier: Tier) -> Config {
        self.tier = Some(tier);
        self
    }

    /// Disables a capability: the engine behaves as if the kernel did not have it.
    pub fn disable(mut self, capability: Capability) -> Config {
        self.disabled.insert(capability);
        self
    }

    /// The number of receive buffers (a power of two, 1 to 32,768) and the size of each in bytes
    /// (64 to 16 MiB). Default: 64 of 64 KiB where buffers are consumed incrementally (epoll, and
    /// io_uring on 6.12 and later), else 1,024 of 4 KiB. The memory is reserved when the engine is
    /// made; a page takes memory when it is first used.
    pub fn buffers(mut self, count: u32, size_bytes: u32) -> Config {
        self.buffers = Some((count, size_bytes));
        self
    }

    /// Watermarks of the send queue of a connection, in bytes. At `high_bytes` sends are refused
    /// ([`SendError::Full`](crate::SendError::Full)). When the queue has fallen to `low_bytes` they
    /// are accepted again ([`Event::Drained`](crate::Event::Drained)). The last accepted payload
    /// may exceed `high_bytes`, so the queue holds at most `high_bytes` plus one payload. Default:
    /// 1 MiB and 256 KiB.
    pub fn send_watermarks(mut self, high_bytes: usize, low_bytes: usize) -> Config {
        self.send_high_watermark = high_bytes;
        self.send_low_watermark = low_bytes;
        self
    }

    setters! { Config:
        /// Ignores `PROACTOR_BACKEND`, `PROACTOR_TIER` and `PROACTOR_DISABLE`. Default: false.
        ignore_environment: bool;
        /// Restricts the ring to the operations that the engine uses (IORING_REGISTER_RESTRICTIONS,
        /// 5.10). Other code that obtains the ring's descriptor cannot open files or start other
        /// operations with it. No effect on epoll. Default: false.
        hardened: bool;
        /// The maximum number of connections. At the limit `connect` and `adopt` fail with
        /// [`Error::Limit`], and a listener pauses after the next connection that it accepts: the
        /// limit can be exceeded by one connection per listener that has an accept armed, and by
        /// those that the kernel had already accepted. The engine reserves address space for this
        /// number of connections, up to 262,144 (22 MiB; a page takes memory when it is first
        /// used). Default: 262,144.
        connections_max: usize;
        /// The maximum number of listeners. Default: 1,024.
        listeners_max: usize;
        /// The maximum number of timers of the caller. Default: 4,194,304.
        timers_max: usize;
        /// How long a poll spins before it sleeps. Spinning exchanges CPU time for latency. Useful
        /// values are 20 to 100 us; the maximum is 10 ms. Default: zero (no spinning).
        ///
        /// A sleep and its wake-up take about 5 to 30 us. A completion that arrives while the
        /// engine spins is taken without them, and a round trip over loopback takes less than half
        /// of the time. The thread is busy meanwhile. It uses up to a full core while completions
        /// arrive about as far apart as the spin time.
        ///
        /// Spinning adapts to the load. When fewer than a quarter of the last 16 spins found a
        /// completion, the engine sleeps without spinning for the next 64 sleeps. If the next trial
        /// fails too, for twice as many, up to 65,536. Idle connections, and a peer on the same
        /// core, therefore cost little. [`Stats::spins`](crate::Stats::spins) counts. No effect in
        /// simulated worlds and in polls with a timeout of zero.
        ///
        /// # Backends
        /// io_uring reads the completion ring, which is shared memory. epoll makes a system call
        /// per try (epoll_wait(2) with a timeout of zero).
        spin: Duration;
        /// The timeout of a connect whose options have none. `None`: the timeout of the kernel,
        /// about two minutes (tcp_syn_retries in tcp(7)). Default: 30 s.
        connect_timeout: Option<Duration>;
        /// The idle timeout of connections whose options have none. Default: `None`.
        idle_timeout: Option<Duration>;
        /// How long `close` waits until the kernel has taken all queued bytes. The connection is
        /// reset after that. Default: 10 s.
        linger: Duration;
        /// How long `close` waits for the peer's FIN after all bytes were sent. It discards input
        /// meanwhile. Without the wait, the kernel answers late input with a reset, and the peer
        /// may lose data that it has not read yet. Default: 250 ms.
        fin_wait: Duration;
        /// How long dropping the engine waits, without progress, for operations in flight to
        /// complete. It leaks their memory after that
        /// ([`leaked_engines`](crate::leaked_engines)). Default: 1 s.
        teardown_max: Duration;
        /// Sizes and techniques for benchmarks. Default: the values that were measured to be best.
        tuning: Tuning;
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        range("connections_max", self.connections_max, 1, 1 << 23)?;
        range("listeners_max", self.listeners_max, 1, 1 << 16)?;
        // Connections and listeners have a timer each, and a table has 2^24 slots.
        range("timers_max", self.timers_max, 1, 7 << 20)?;
        if let Some((count, size)) = self.buffers {
            range("buffers (count)", count as usize, 1, 32_768)?;
            range("buffers (size)", size as usize, 64, 16 << 20)?;
            if !count.is_power_of_two() {
                return Err(Error::Config {
                    field: "buffers",
                    why: format!("{count} is not a power of two"),
                });
            }
        }
        range("send_watermarks (high)", self.send_high_watermark, 1, usize::MAX)?;
        range("send_watermarks (low)", self.send_low_watermark, 0, self.send_high_watermark - 1)?;
        range(
            "spin (ns)",
            usize::try_from(self.spin.as_nanos()).unwrap_or(usize::MAX),
            0,
            10_000_000,
        )?;
        self.tuning.validate(self.buffers.map(|(count, _)| count))?;
        if self.backend == Some(Backend::Epoll) && self.tier.is_some() {
            return Err(Error::Config {
                field: "tier",
                why: "the epoll backend has no tiers".into(),
            });
        }
        Ok(())
    }

    /// Applies the environment variables to the fields that the program has not set.
    pub(crate) fn with_environment(self) -> Result<Config, Error> {
        match self.ignore_environment {
            true => Ok(self),
            false => self.with_variables(|name| std::env::var(name).ok()),
        }
    }

    fn with_variables(
        mut self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, Error> {
        let bad = |field, value: &str, known: &str| {
            Err(Error::Config { field, why: format!("{value:?} is not one of {known}") })
        };
        let set_by_program = self.backend.is_some() || self.tier.is_some();
        if let Some(name) =
            variable("PROACTOR_BACKEND").filter(|name| !name.is_empty() && name != "auto")
        {
            match Backend::from_name(&name) {
                None => return bad("PROACTOR_BACKEND", &name, "auto, uring, epoll"),
                Some(backend) if !set_by_program => self.backend = Some(backend),
                Some(_) => {}
            }
        }
        if let Some(name) =
            variable("PROACTOR_TIER").filter(|name| !name.is_empty() && name != "auto")
        {
            match Tier::from_name(&name) {
                None => {
                    return bad(
                        "PROACTOR_TIER",
                        &name,
                        "auto, deferred, multishot, oneshot, polled",
                    );
                }
                Some(tier) if self.tier.is_none() && self.backend != Some(Backend::Epoll) => {
                    self.tier = Some(tier)
                }
                Some(_) => {}
            }
        }
        if let Some(list) = variable("PROACTOR_DISABLE") {
            let list = Capability::parse_list(&list)
                .map_err(|why| Error::Config { field: "PROACTOR_DISABLE", why })?;
            list.into_iter().for_each(|capability| self.disabled_by_environment.insert(capability));
            self.disabled = self.disabled.union(self.disabled_by_environment);
        }
        Ok(self)
    }

    /// The source of a disabled capability, for reports. `None` if it is enabled.
    pub(crate) fn switched_off(&self, capability: Capability) -> Option<&'static str> {
        match (
            self.disabled.contains(capability),
            self.disabled_by_environment.contains(capability),
        ) {
            (false, _) => None,
            (true, true) => Some("switched off by PROACTOR_DISABLE"),
            (true, false) => Some("switched off by Config::disable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_value_is_refused_with_its_name() {
        let field = |config: Config| match config.validate() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("expected an error, got {other:?}"),
        };
        assert!(Config::default().validate().is_ok());
        assert_eq!(field(Config::default().buffers(3, 4096)), "buffers");
        assert_eq!(field(Config::default().send_watermarks(10, 10)), "send_watermarks (low)");
        assert_eq!(field(Config::default().tuning(Tuning::default().budget(0))), "budget");
        assert_eq!(field(Config::default().backend(Backend::Epoll).tier(Tier::Polled)), "tier");
    }

    #[test]
    fn the_environment_sets_what_the_program_does_not() {
        let with = |config: Config, pairs: &'static [(&str, &str)]| {
            config.with_variables(|name| {
                pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string())
            })
        };
        let config = with(
            Config::default(),
            &[("PROACTOR_BACKEND", "epoll"), ("PROACTOR_DISABLE", "send_zc")],
        )
        .unwrap();
        assert_eq!(config.backend, Some(Backend::Epoll));
        assert_eq!(
            config.switched_off(Capability::SendZc),
            Some("switched off by PROACTOR_DISABLE")
        );
        let config =
            with(Config::default().backend(Backend::Uring), &[("PROACTOR_BACKEND", "epoll")])
                .unwrap();
        assert_eq!(config.backend, Some(Backend::Uring), "the program overrides the environment");
        assert!(with(Config::default(), &[("PROACTOR_BACKEND", "kqueue")]).is_err());
        assert!(with(Config::default(), &[("PROACTOR_TIER", "turbo")]).is_err());
        assert!(with(Config::default(), &[("PROACTOR_DISABLE", "flux")]).is_err());
    }
}
