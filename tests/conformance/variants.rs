//! The variants: the ways to run the engine. Owns: their list, and the configuration of each. Must
//! not know the scenarios.

use proactor::{Backend, Capability, Config, Tier, sim};

/// One way to run the engine: a backend, a tier, and the capabilities that it may use.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub name: &'static str,
    /// `None`: the engine chooses.
    backend: Option<Backend>,
    tier: Option<Tier>,
    mask: Mask,
    hardened: bool,
    /// In a simulated world: the probability of each harmless fault.
    faults: f64,
}

/// Which capabilities the engine must not use.
#[derive(Clone, Copy, Debug)]
enum Mask {
    None,
    These(&'static [Capability]),
    /// All that the first release of this kernel version does not have.
    After(u32, u32),
}

/// The engine chooses the backend and the tier.
pub static AUTO: Variant = Variant {
    name: "auto",
    backend: None,
    tier: None,
    mask: Mask::None,
    hardened: false,
    faults: 0.0,
};

pub static EPOLL: Variant = epoll("epoll", Mask::None);

/// As on 5.6: the ring has restrictions that refuse later operations and flags. (Restrictions are
/// of 5.10 themselves; they only enforce the mask.)
pub static AS_5_6: Variant =
    Variant { hardened: true, ..uring("uring/polled-as-5.6", Tier::Polled, Mask::After(5, 6)) };

const fn uring(name: &'static str, tier: Tier, mask: Mask) -> Variant {
    Variant {
        name,
        backend: Some(Backend::Uring),
        tier: Some(tier),
        mask,
        hardened: false,
        faults: 0.0,
    }
}

const fn epoll(name: &'static str, mask: Mask) -> Variant {
    Variant { name, backend: Some(Backend::Epoll), tier: None, mask, hardened: false, faults: 0.0 }
}

const fn sim(name: &'static str, faults: f64) -> Variant {
    Variant {
        name,
        backend: Some(Backend::Sim),
        tier: None,
        mask: Mask::None,
        hardened: false,
        faults,
    }
}

const WHOLE_BUFFERS: Mask = Mask::These(&[Capability::Incremental, Capability::MultishotAccept]);

pub static VARIANTS: &[Variant] = &[
    uring("uring/deferred", Tier::Deferred, Mask::None),
    uring("uring/deferred-whole-buffers", Tier::Deferred, WHOLE_BUFFERS),
    uring("uring/multishot", Tier::Multishot, Mask::None),
    uring("uring/oneshot", Tier::Oneshot, Mask::None),
    uring("uring/oneshot-as-5.10", Tier::Oneshot, Mask::After(5, 10)),
    uring("uring/polled", Tier::Polled, Mask::None),
    epoll("epoll", Mask::None),
    epoll("epoll/milliseconds", Mask::These(&[Capability::EpollPwait2])),
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
        let mask = Capability::all().filter(|capability| self.masks(*capability));
        mask.fold(config, Config::disable)
    }

    fn masks(&self, capability: Capability) -> bool {
        if self.hardened && capability == Capability::Restrictions {
            return false;
        }
        match self.mask {
            Mask::None => false,
            Mask::These(list) => list.contains(&capability),
            Mask::After(major, minor) => {
                let mut parts = capability
                    .kernel()
                    .split('.')
                    .map(|part| part.parse::<u32>().expect("a version"));
                (parts.next(), parts.next()) > (Some(major), Some(minor))
            }
        }
    }

    /// The faults of a simulated variant; `None` for a kernel's.
    pub fn simulated(&self) -> Option<sim::Faults> {
        (self.backend == Some(Backend::Sim)).then(|| sim::Faults::harmless(self.faults))
    }

    /// True if faults cut operations short or delay them.
    pub fn is_faulty(&self) -> bool {
        self.faults > 0.0
    }

    /// True if the engine chooses the backend.
    pub fn is_auto(&self) -> bool {
        self.backend.is_none()
    }

    pub fn is_epoll(&self) -> bool {
        self.backend == Some(Backend::Epoll)
    }
}
