//! Configuration. Owns: every limit and choice of an engine, their defaults, and their validation.
//! Invariant: an engine is only ever made from a validated configuration.

use crate::caps::{CapSet, Capability};
use crate::error::Error;
use crate::tier::{Backend, Tier};
use crate::tuning::{Tuning, range, setters};
use std::time::Duration;

/// How an engine is made. Every method takes and returns the configuration, so that calls chain.
///
/// The environment is read when the engine is made: `PROACTOR_BACKEND=uring|epoll|auto` and
/// `PROACTOR_TIER=NAME` decide what the configuration leaves open; `PROACTOR_DISABLE=LIST` adds to
/// [`Config::disable`]. [`Config::ignore_environment`] turns that off.
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
    /// What of `disabled` came from the environment, to say so in reports.
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
    /// Insists on a backend. Default: io_uring where the kernel allows it, else epoll.
    /// [`Engine::new`](crate::Engine::new) fails if it is not to be had, and says why.
    pub fn backend(mut self, backend: Backend) -> Config {
        self.backend = Some(backend);
        self
    }

    /// Insists on a tier of the io_uring backend (and so on that backend). Default: the best that a
    /// trial proves.
    pub fn tier(mut self, tier: Tier) -> Config {
        self.tier = Some(tier);
        self
    }

    /// Does without a capability, as if the kernel lacked it.
    pub fn disable(mut self, capability: Capability) -> Config {
        self.disabled.insert(capability);
        self
    }

    /// The number of receive buffers (a power of two, 1 to 32,768) and the size of each in bytes
    /// (64 to 16 MiB). Default: 64 of 64 KiB where buffers are consumed piece by piece (epoll, and
    /// io_uring on 6.12 and later), else 1,024 of 4 KiB. Memory is touched only as it is used.
    pub fn buffers(mut self, count: u32, size_bytes: u32) -> Config {
        self.buffers = Some((count, size_bytes));
        self
    }

    /// The send queue of a connection, in bytes: at `high` sends are refused, at `low` they are
    /// welcome again ([`Event::Drained`](crate::Event::Drained)). One payload may go beyond `high`:
    /// the queue is bounded by `high` plus one payload. Default: 1 MiB and 256 KiB.
    pub fn send_watermarks(mut self, high_bytes: usize, low_bytes: usize) -> Config {
        self.send_high_watermark = high_bytes;
        self.send_low_watermark = low_bytes;
        self
    }

    setters! { Config:
        /// Does not look at `PROACTOR_BACKEND`, `PROACTOR_TIER` and `PROACTOR_DISABLE`. Default:
        /// false.
        ignore_environment: bool;
        /// Restricts the ring to the operations that the engine uses (IORING_REGISTER_RESTRICTIONS,
        /// 5.10): whatever else gets hold of it cannot open files or start other operations through
        /// it. No effect on epoll. Default: false.
        hardened: bool;
        /// The most connections. `connect` and `adopt` are refused at the limit; listeners pause,
        /// after admitting what the kernel had accepted already. Address space for as many, up to
        /// 262,144, is set aside when the engine is made (22 MiB; memory only as it is used).
        /// Default: 262,144.
        connections_max: usize;
        /// The most listeners. Default: 1,024.
        listeners_max: usize;
        /// The most timers of the caller. Default: 4,194,304.
        timers_max: usize;
        /// How long to look for completions before sleeping, for those who pay CPU for latency: 20
        /// to 100 us are sensible, and 10 ms the most. A sleep and the wake-up from it cost some 5
        /// to 30 us; a completion that comes within the time given is taken without them, and the
        /// round trip over loopback is less than half as long. Meanwhile the thread is busy: up to
        /// all of a core, while completions come about as far apart as that time. Looking is
        /// adaptive: when fewer than a quarter of the looks find something, the engine sleeps at
        /// once for the next 64 sleeps, then twice as many each time, up to 65,536, before it tries
        /// again; so a connection at rest, or a peer on the same core, costs next to nothing.
        /// [`Stats::spins`](crate::Stats::spins) counts. No effect in simulated worlds, nor where
        /// `poll` is not to wait. Default: zero, never.
        ///
        /// # Backends
        /// io_uring looks at memory shared with the kernel; epoll makes a system call a look
        /// (epoll_wait with no timeout).
        spin: Duration;
        /// The timeout of connects that have none of their own. `None`: the kernel's own, about two
        /// minutes. Default: 30 s.
        connect_timeout: Option<Duration>;
        /// The idle timeout of connections that have none of their own. Default: `None`.
        idle_timeout: Option<Duration>;
        /// How long `close` waits for the peer to take what is queued, before it gives up. Default:
        /// 10 s.
        linger: Duration;
        /// How long `close`, when all is sent, waits for the peer's FIN, discarding what still
        /// comes. Without that wait, input that arrives late makes the kernel answer with a reset,
        /// and the peer may lose what it has not read. Default: 250 ms.
        fin_wait: Duration;
        /// How long dropping the engine waits, while nothing moves, for the kernel to let go of its
        /// buffers before it leaks them. Default: 1 s.
        teardown_max: Duration;
        /// Sizes and techniques that exist for benchmarks. Default: what was measured to be best.
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
                    why: format!("{count} is no power of two"),
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

    /// Lets the environment decide what is left open.
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
            Err(Error::Config { field, why: format!("{value:?} is none of {known}") })
        };
        let chosen_here = self.backend.is_some() || self.tier.is_some();
        if let Some(name) =
            variable("PROACTOR_BACKEND").filter(|name| !name.is_empty() && name != "auto")
        {
            match Backend::from_name(&name) {
                None => return bad("PROACTOR_BACKEND", &name, "auto, uring, epoll"),
                Some(backend) if !chosen_here => self.backend = Some(backend),
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

    /// Why a capability is switched off, if it is.
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
    fn nonsense_is_refused_by_name() {
        let field = |config: Config| match config.validate() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("expected a refusal, got {other:?}"),
        };
        assert!(Config::default().validate().is_ok());
        assert_eq!(field(Config::default().buffers(3, 4096)), "buffers");
        assert_eq!(field(Config::default().send_watermarks(10, 10)), "send_watermarks (low)");
        assert_eq!(field(Config::default().tuning(Tuning::default().budget(0))), "budget");
        assert_eq!(field(Config::default().backend(Backend::Epoll).tier(Tier::Polled)), "tier");
    }

    #[test]
    fn the_environment_fills_in_what_is_open() {
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
        assert_eq!(config.backend, Some(Backend::Uring), "what the program says by name stands");
        assert!(with(Config::default(), &[("PROACTOR_BACKEND", "kqueue")]).is_err());
        assert!(with(Config::default(), &[("PROACTOR_TIER", "turbo")]).is_err());
        assert!(with(Config::default(), &[("PROACTOR_DISABLE", "flux")]).is_err());
    }
}
