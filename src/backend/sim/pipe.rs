//! One direction of a stream: bytes on their way and bytes that arrived. Owns: the bytes, in order,
//! and when the ones on their way arrive. Knows no socket and no clock.

use std::collections::VecDeque;

/// A piece of a stream on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cargo {
    Data(usize),
    Fin,
    Reset,
}

#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// First what arrived, then what is on its way.
    bytes: VecDeque<u8>,
    arrived: usize,
    flight: VecDeque<(u64, Cargo)>,
    /// The head has arrived at a cut in the network, and waits for it to heal.
    pub(crate) stalled: bool,
}

impl Pipe {
    /// Bytes that can be read.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived
    }

    /// All bytes in it.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn in_flight(&self) -> bool {
        !self.flight.is_empty()
    }

    /// When the first data on its way arrives.
    pub(crate) fn next_data(&self) -> Option<u64> {
        self.flight.iter().find(|(_, cargo)| matches!(cargo, Cargo::Data(_))).map(|(at, _)| *at)
    }

    /// When the last piece on its way arrives: nothing overtakes it.
    pub(crate) fn last_arrival(&self) -> u64 {
        self.flight.back().map_or(0, |(at, _)| *at)
    }

    /// Takes bytes of a piece that [`Pipe::depart`] will announce.
    pub(crate) fn load(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Sends a piece off. True if nothing was under way before it: the caller must see to its
    /// arrival.
    pub(crate) fn depart(&mut self, arrival: u64, cargo: Cargo) -> bool {
        let first = self.flight.is_empty();
        self.flight.push_back((arrival, cargo));
        first
    }

    /// The first piece arrives. Also tells when the next one does.
    pub(crate) fn arrive(&mut self) -> Option<(Cargo, Option<u64>)> {
        let (_, cargo) = self.flight.pop_front()?;
        if let Cargo::Data(len) = cargo {
            self.arrived += len;
        }
        Some((cargo, self.flight.front().map(|(at, _)| *at)))
    }

    /// Takes up to `max` arrived bytes out.
    pub(crate) fn read(&mut self, max: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let len = max.min(self.arrived);
        let (first, second) = self.bytes.as_slices();
        let split = len.min(first.len());
        sink(&first[..split]);
        if len > split {
            sink(&second[..len - split]);
        }
        self.bytes.drain(..len);
        self.arrived -= len;
        len
    }

    /// What is on its way is lost.
    pub(crate) fn lose_flight(&mut self) {
        self.flight.clear();
        self.bytes.truncate(self.arrived);
        self.stalled = false;
    }
}
