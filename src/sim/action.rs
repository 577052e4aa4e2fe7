//! Scheduled actions. Owns: [`Action`], and its translation for the network. Must not know: how an
//! action is carried out (`backend/sim/script.rs`).

use super::{Fault, Faults, Host, Link};
use crate::backend::sim::{Script, Shared};
use std::sync::Arc;

/// An action at an exact time: see [`World::at`](super::World::at).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Partitions two hosts. Segments wait until it heals, because TCP retransmits them.
    Partition(Host, Host),
    /// Ends the partition of two hosts.
    Heal(Host, Host),
    /// The host loses its power. Its connections and listeners are lost without a FIN or RST, and
    /// polls of its engines fail with [`Error::Simulation`](crate::Error::Simulation). Unix socket
    /// files remain.
    Crash(Host),
    /// The host is up again, and new engines can be created on it. Peers of lost connections get an
    /// RST when they send.
    Restart(Host),
    /// Replaces the fault plan.
    Faults(Faults),
    /// Replaces the link between two hosts, in both directions.
    Link(Host, Host, Link),
    /// A fault happens on the next occasions at a host, independent of its probability.
    Force {
        /// The host.
        host: Host,
        /// The fault.
        fault: Fault,
        /// On how many occasions.
        times: u32,
    },
    /// After a number of further bytes from one host to another, over all connections, the
    /// connection that sends the next byte is reset.
    ResetAfter {
        /// The sender.
        from: Host,
        /// The receiver.
        to: Host,
        /// How many bytes are still transmitted.
        bytes: u64,
    },
    /// Limits how many descriptors the engines of a host may hold. Default: no limit.
    Descriptors {
        /// The host.
        host: Host,
        /// The limit.
        max: usize,
    },
}

impl Action {
    /// The action with hosts as numbers.
    ///
    /// # Panics
    /// If it names a host of another world.
    pub(super) fn script(self, world: &Arc<Shared>) -> Script {
        let index = |host: &Host| {
            assert!(Arc::ptr_eq(&host.world, world), "a host of another world");
            host.index
        };
        match self {
            Action::Partition(a, b) => Script::Cut(index(&a), index(&b)),
            Action::Heal(a, b) => Script::Heal(index(&a), index(&b)),
            Action::Crash(host) => Script::Crash(index(&host)),
            Action::Restart(host) => Script::Restart(index(&host)),
            Action::Faults(faults) => Script::Faults(faults),
            Action::Link(a, b, link) => Script::Link(index(&a), index(&b), link),
            Action::Force { host, fault, times } => Script::Force(index(&host), fault, times),
            Action::ResetAfter { from, to, bytes } => {
                Script::ResetAfter(index(&from), index(&to), bytes)
            }
            Action::Descriptors { host, max } => Script::Descriptors(index(&host), max),
        }
    }
}
