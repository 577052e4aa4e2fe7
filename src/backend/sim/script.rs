//! Faults at an exact moment. Owns: the actions that a test can schedule.

use super::events::Event;
use super::faults::{Fault, Faults};
use super::net::{Link, Net};

/// A host of a simulated world, by number: hosts are numbered as they are made.
pub(crate) type HostIndex = u32;

/// What a test schedules, host by host.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    Cut(HostIndex, HostIndex),
    Heal(HostIndex, HostIndex),
    Crash(HostIndex),
    Restart(HostIndex),
    Faults(Faults),
    Link(HostIndex, HostIndex, Link),
    /// The next so many occasions of a fault at a host.
    Force(HostIndex, Fault, u32),
    /// The connection from one host to another that sends the byte after so many more is reset
    /// there.
    ResetAfter(HostIndex, HostIndex, u64),
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
            Script::ResetAfter(from, to, bytes) => self.way_mut(from, to).reset_after = Some(bytes),
            Script::Descriptors(host, max) => self.hosts[host as usize].descriptors_max = max,
        }
    }
}
