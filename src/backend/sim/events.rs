//! What will happen in the world, in order of time. Owns: the queue of coming events, and what each
//! does when its time has come. Events of the same moment happen in the order in which they were
//! made.

use super::net::Net;
use super::op::Notice;
use super::sock::SockId;
use super::trace::Kind;
use crate::backend::OpKind;
use crate::id::Key;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug)]
pub(crate) enum Event {
    /// The first piece on its way to a socket arrives.
    Arrive(SockId),
    Syn {
        client: SockId,
        attempt: u32,
    },
    ConnectEnd {
        client: SockId,
        errno: i32,
    },
    Probe {
        sock: SockId,
        attempt: u32,
    },
    /// A delayed completion.
    Tell {
        engine: u32,
        notice: Notice,
    },
    /// A delayed cancel.
    Cancel {
        engine: u32,
        key: Key,
        kind: OpKind,
    },
    Heal(u32, u32),
    Restart(u32),
    Script(usize),
}

#[derive(Debug)]
struct Coming {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Coming {
    fn eq(&self, other: &Coming) -> bool {
        self.number == other.number
    }
}

impl Eq for Coming {}

impl PartialOrd for Coming {
    fn partial_cmp(&self, other: &Coming) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Coming {
    /// The greatest is the first to come.
    fn cmp(&self, other: &Coming) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    heap: BinaryHeap<Coming>,
    number: u64,
}

impl Events {
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.heap.push(Coming { at, number: self.number, event });
    }

    pub(crate) fn tell(&mut self, at: u64, engine: u32, notice: Notice) {
        self.push(at, Event::Tell { engine, notice });
    }

    /// When the next one comes.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|coming| coming.at)
    }
}

impl Net {
    /// Lets the next event happen, if it is due by `until`. Returns whether one did.
    pub(crate) fn step(&mut self, until: u64) -> bool {
        match self.events.heap.peek() {
            Some(coming) if coming.at <= until => {}
            _ => return false,
        }
        let Coming { at, event, .. } = self.events.heap.pop().expect("just seen");
        self.now = self.now.max(at);
        match event {
            Event::Arrive(sock) => self.arrive(sock),
            Event::Syn { client, attempt } => self.syn(client, attempt),
            Event::ConnectEnd { client, errno } => self.connect_ends(client, errno),
            Event::Probe { sock, attempt } => self.probe_ends(sock, attempt),
            Event::Tell { engine, notice } => self.push_ready(engine, notice),
            Event::Cancel { engine, key, kind } => self.cancel_now(engine, key, kind),
            Event::Heal(a, b) => self.heal(a, b),
            Event::Restart(host) => self.restart(host),
            Event::Script(index) => self.run_script(index),
        }
        true
    }

    /// Moves the clock, when nothing happens before.
    pub(crate) fn advance(&mut self, to: u64) {
        self.now = self.now.max(to);
    }

    /// Cuts two hosts from each other: packets wait, as TCP sends them again, until it is healed.
    pub(crate) fn cut(&mut self, a: u32, b: u32) {
        self.trace.add(self.now, Kind::Cut, a, u64::from(b), 0);
        self.way_mut(a, b).cut = true;
        self.way_mut(b, a).cut = true;
    }

    pub(crate) fn cut_for_a_while(&mut self, a: u32, b: u32) {
        if !self.way(a, b).cut {
            self.cut(a, b);
            let at = self.now + self.some_outage();
            self.events.push(at, Event::Heal(a, b));
        }
    }

    pub(crate) fn heal(&mut self, a: u32, b: u32) {
        self.trace.add(self.now, Kind::Heal, a, u64::from(b), 0);
        self.way_mut(a, b).cut = false;
        self.way_mut(b, a).cut = false;
        self.unstall(a, b);
    }

    /// A host loses its power: nothing of it is left, and nobody is told.
    pub(crate) fn crash(&mut self, host: u32) {
        if !std::mem::replace(&mut self.hosts[host as usize].up, false) {
            return;
        }
        self.trace.add(self.now, Kind::Crash, host, 0, 0);
        for engine in self.engines.iter_mut().filter(|engine| engine.host == host) {
            engine.die();
        }
        self.vanish(host);
    }

    pub(crate) fn restart(&mut self, host: u32) {
        if std::mem::replace(&mut self.hosts[host as usize].up, true) {
            return;
        }
        self.trace.add(self.now, Kind::Restart, host, 0, 0);
        for other in 0..self.hosts.len() as u32 {
            self.unstall(host, other);
        }
    }
}
