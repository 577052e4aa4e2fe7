//! Scheduled events. Owns: the queue of events, and the effect of each. Invariant: events happen in
//! order of time; those of the same time in the order in which they were scheduled.

use super::net::Net;
use super::op::Ready;
use super::sock::SockId;
use super::trace::Kind;
use crate::backend::OpKind;
use crate::id::Key;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug)]
pub(crate) enum Event {
    /// The first segment in flight to a socket arrives.
    Arrive(SockId),
    /// A SYN arrives.
    Syn {
        client: SockId,
        attempt: u32,
    },
    /// The answer to a SYN arrives, or the connect times out.
    ConnectEnd {
        client: SockId,
        errno: i32,
    },
    /// An unacknowledged segment is sent again, or its reset arrives.
    Retransmit {
        sock: SockId,
        attempt: u32,
    },
    /// A delayed entry of the queue of an engine.
    Ready {
        engine: u32,
        ready: Ready,
    },
    /// A delayed cancel.
    Cancel {
        engine: u32,
        key: Key,
        kind: OpKind,
    },
    /// The end of a partition between two hosts.
    Heal(u32, u32),
    Restart(u32),
    /// A scheduled [`Script`](super::Script), by its index.
    Script(usize),
}

/// An event with its time and number.
#[derive(Debug)]
struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// Reversed: the greatest of a [`BinaryHeap`] is popped first.
    fn cmp(&self, other: &Scheduled) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The queue of events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    heap: BinaryHeap<Scheduled>,
    number: u64,
}

impl Events {
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.heap.push(Scheduled { at, number: self.number, event });
    }

    pub(crate) fn push_ready(&mut self, at: u64, engine: u32, ready: Ready) {
        self.push(at, Event::Ready { engine, ready });
    }

    /// The time of the next event.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|scheduled| scheduled.at)
    }
}

impl Net {
    /// Executes the next event if it is due by `until`. Returns whether it was.
    pub(crate) fn step(&mut self, until: u64) -> bool {
        match self.events.heap.peek() {
            Some(scheduled) if scheduled.at <= until => {}
            _ => return false,
        }
        let Scheduled { at, event, .. } = self.events.heap.pop().expect("peeked above");
        self.now = self.now.max(at);
        match event {
            Event::Arrive(sock) => self.arrive(sock),
            Event::Syn { client, attempt } => self.syn(client, attempt),
            Event::ConnectEnd { client, errno } => self.end_connect(client, errno),
            Event::Retransmit { sock, attempt } => self.retransmit(sock, attempt),
            Event::Ready { engine, ready } => self.push_ready(engine, ready),
            Event::Cancel { engine, key, kind } => self.cancel_now(engine, key, kind),
            Event::Heal(a, b) => self.heal(a, b),
            Event::Restart(host) => self.restart(host),
            Event::Script(index) => self.run_script(index),
        }
        true
    }

    /// Moves the clock. No event may be due before `to`.
    pub(crate) fn advance(&mut self, to: u64) {
        self.now = self.now.max(to);
    }

    /// Partitions two hosts: segments wait until the partition heals, because TCP retransmits them.
    pub(crate) fn cut(&mut self, a: u32, b: u32) {
        self.trace.add(self.now, Kind::Cut, a, u64::from(b), 0);
        self.direction_mut(a, b).cut = true;
        self.direction_mut(b, a).cut = true;
    }

    /// Partitions two hosts, and schedules the end of it.
    pub(crate) fn cut_temporarily(&mut self, a: u32, b: u32) {
        if !self.direction(a, b).cut {
            self.cut(a, b);
            let at = self.now + self.draw_outage_ns();
            self.events.push(at, Event::Heal(a, b));
        }
    }

    pub(crate) fn heal(&mut self, a: u32, b: u32) {
        self.trace.add(self.now, Kind::Heal, a, u64::from(b), 0);
        self.direction_mut(a, b).cut = false;
        self.direction_mut(b, a).cut = false;
        self.resume_stalled(a, b);
    }

    /// A host loses its power: its sockets vanish, and no FIN or RST is sent.
    pub(crate) fn crash(&mut self, host: u32) {
        if !std::mem::replace(&mut self.hosts[host as usize].up, false) {
            return;
        }
        self.trace.add(self.now, Kind::Crash, host, 0, 0);
        for engine in self.engines.iter_mut().filter(|engine| engine.host == host) {
            engine.terminate();
        }
        self.remove_sockets(host);
    }

    pub(crate) fn restart(&mut self, host: u32) {
        if std::mem::replace(&mut self.hosts[host as usize].up, true) {
            return;
        }
        self.trace.add(self.now, Kind::Restart, host, 0, 0);
        for other in 0..self.hosts.len() as u32 {
            self.resume_stalled(host, other);
        }
    }
}
