//! One direction of a connection. Owns: the bytes that have arrived, the bytes in flight, and when
//! each segment in flight arrives. Invariant: bytes and segments stay in order. Must not know:
//! sockets, the clock.

use std::collections::VecDeque;

/// A segment in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// With this many bytes.
    Data(usize),
    Fin,
    Reset,
}

#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// The bytes that have arrived, followed by those in flight.
    bytes: VecDeque<u8>,
    arrived: usize,
    /// Segments in flight, with the times at which they arrive.
    in_flight: VecDeque<(u64, Segment)>,
    /// The first segment in flight waits for the end of a partition.
    pub(crate) stalled: bool,
}

impl Pipe {
    /// How many bytes can be read.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived
    }

    /// How many bytes have arrived or are in flight.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// When the first data in flight arrives.
    pub(crate) fn next_data_arrival(&self) -> Option<u64> {
        self.in_flight
            .iter()
            .find(|(_, segment)| matches!(segment, Segment::Data(_)))
            .map(|(at, _)| *at)
    }

    /// When the last segment in flight arrives. A new one arrives no earlier.
    pub(crate) fn last_arrival(&self) -> u64 {
        self.in_flight.back().map_or(0, |(at, _)| *at)
    }

    /// Appends bytes. [`Pipe::transmit`] of their segment follows.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Sends a segment. True if no other is in flight: the caller then schedules the arrival.
    pub(crate) fn transmit(&mut self, arrival: u64, segment: Segment) -> bool {
        let first = self.in_flight.is_empty();
        self.in_flight.push_back((arrival, segment));
        first
    }

    /// The first segment arrives. Returns it, and when the next one arrives.
    pub(crate) fn arrive(&mut self) -> Option<(Segment, Option<u64>)> {
        let (_, segment) = self.in_flight.pop_front()?;
        if let Segment::Data(len) = segment {
            self.arrived += len;
        }
        Some((segment, self.in_flight.front().map(|(at, _)| *at)))
    }

    /// Takes up to `max` bytes that have arrived.
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

    /// Drops all segments in flight.
    pub(crate) fn discard_in_flight(&mut self) {
        self.in_flight.clear();
        self.bytes.truncate(self.arrived);
        self.stalled = false;
    }
}
