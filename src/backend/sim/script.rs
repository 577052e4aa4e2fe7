//! Scripted faults. Owns: the actions that a test can schedule for an exact time. Must not know:
//! why a test schedules them.

use super::events::Event;
use super::faults::{Fault, Faults};
use super::net::{Link, Net};

/// The number of a host, in the order in which hosts were added.
pub(crate) type HostIndex = u32;

/// A scheduled action: [`Action`](crate::sim::Action) with hosts as numbers.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    Cut(HostIndex, HostIndex),
    Heal(HostIndex, HostIndex),
    Crash(HostIndex),
    Restart(HostIndex),
    Faults(Faults),
    Link(HostIndex, HostIndex, Link),
    /// A fault at a host happens on this many of its next occasions.
    Force(HostIndex, Fault, u32),
    /// After this many more bytes from one host to another, the connection that sends the next byte
    /// is reset.
    ResetAfter(HostIndex, HostIndex, u64),
    /// The most descriptors that engines of a host may hold.
    Descriptors(HostIndex, usize),
}

impl Net {
    pub(crate) fn schedule(&mut self, at: u64, script: Script) {
        let index = self.scripts.insert(script);
        self.events.push(at, Event::Script(index));
    }

    pub(crate) fn run_script(&mut self, index: usize) {
        let script = self.scripts.remove(index);
        self.apply(script);
    }

    pub(crate) fn apply(&mut self, script: Script) {
        match script {
            Script::Cut(a, b) => self.cut(a, b),
            Script::Heal(a, b) => self.heal(a, b),
            Script::Crash(host) => self.crash(host),
            Script::Restart(host) => self.restart(host),
            Script::Faults(faults) => self.faults = faults,
            Script::Link(a, b, link) => self.set_link(a, b, &link),
            Script::Force(host, fault, times) => self.force(host, fault, times),
            Script::ResetAfter(from, to, bytes) => {
                self.direction_mut(from, to).reset_after = Some(bytes)
            }
            Script::Descriptors(host, max) => self.hosts[host as usize].descriptors_max = max,
        }
    }
}
