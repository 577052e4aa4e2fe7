//! The ways to run the engine that the suite knows.

use proactor::{Backend, Capability, Config, Tier, sim};

/// One way to run the engine.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub name: &'static str,
    /// `None`: whatever the engine chooses.
    backend: Option<Backend>,
    tier: Option<Tier>,
    hidden: Hidden,
    hardened: bool,
    /// In a simulated world: how often each harmless fault happens.
    faults: f64,
}

/// Which capabilities the engine is not to see.
#[derive(Clone, Copy, Debug)]
enum Hidden {
    None,
    These(&'static [Capability]),
    /// All that a kernel of this version, as it first was, does not have.
    After(u32, u32),
}

/// What the engine chooses by itself.
pub static AUTO: Variant = Variant {
    name: "auto",
    backend: None,
    tier: None,
    hidden: Hidden::None,
    hardened: false,
    faults: 0.0,
};

pub static EPOLL: Variant = epoll("epoll", Hidden::None);

/// As on 5.6, on a ring whose restrictions let no later operation or flag pass. (The restrictions
/// themselves are of 5.10: they are the mask, not what it hides.)
pub static AS_5_6: Variant =
    Variant { hardened: true, ..uring("uring/polled-as-5.6", Tier::Polled, Hidden::After(5, 6)) };

const fn uring(name: &'static str, tier: Tier, hidden: Hidden) -> Variant {
    Variant {
        name,
        backend: Some(Backend::Uring),
        tier: Some(tier),
        hidden,
        hardened: false,
        faults: 0.0,
    }
}

const fn epoll(name: &'static str, hidden: Hidden) -> Variant {
    Variant {
        name,
        backend: Some(Backend::Epoll),
        tier: None,
        hidden,
        hardened: false,
        faults: 0.0,
    }
}

const fn sim(name: &'static str, faults: f64) -> Variant {
    Variant {
        name,
        backend: Some(Backend::Sim),
        tier: None,
        hidden: Hidden::None,
        hardened: false,
        faults,
    }
}

const PLAIN: Hidden = Hidden::These(&[Capability::Incremental, Capability::MultishotAccept]);

pub static VARIANTS: &[Variant] = &[
    uring("uring/deferred", Tier::Deferred, Hidden::None),
    uring("uring/deferred-whole-buffers", Tier::Deferred, PLAIN),
    uring("uring/multishot", Tier::Multishot, Hidden::None),
    uring("uring/oneshot", Tier::Oneshot, Hidden::None),
    uring("uring/oneshot-as-5.10", Tier::Oneshot, Hidden::After(5, 10)),
    uring("uring/polled", Tier::Polled, Hidden::None),
    epoll("epoll", Hidden::None),
    epoll("epoll/milliseconds", Hidden::These(&[Capability::EpollPwait2])),
    sim("sim", 0.0),
    sim("sim/faulty", 0.1),
];

impl Variant {
    pub fn config(&self) -> Config {
        let mut config = Config::default().ignore_environment(true).hardened(self.hardened);
        if let Some(backend) = self.backend {
            config = config.backend(backend);
        }
        if let Some(tier) = self.tier {
            config = config.tier(tier);
        }
        let hidden = Capability::all().filter(|capability| self.hides(*capability));
        hidden.fold(config, Config::disable)
    }

    fn hides(&self, capability: Capability) -> bool {
        if self.hardened && capability == Capability::Restrictions {
            return false;
        }
        match self.hidden {
            Hidden::None => false,
            Hidden::These(list) => list.contains(&capability),
            Hidden::After(major, minor) => {
                let mut parts = capability
                    .kernel()
                    .split('.')
                    .map(|part| part.parse::<u32>().expect("a version"));
                (parts.next(), parts.next()) > (Some(major), Some(minor))
            }
        }
    }

    /// The fault plan, of a simulated variant.
    pub fn simulated(&self) -> Option<sim::Faults> {
        (self.backend == Some(Backend::Sim)).then(|| sim::Faults::harmless(self.faults))
    }

    /// True if operations may be cut short or come late at any time.
    pub fn is_faulty(&self) -> bool {
        self.faults > 0.0
    }

    /// True if the engine chooses for itself.
    pub fn is_free(&self) -> bool {
        self.backend.is_none()
    }

    pub fn is_epoll(&self) -> bool {
        self.backend == Some(Backend::Epoll)
    }
}
