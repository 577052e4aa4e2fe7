//! The operations of engines, one a file. Owns: what all operations share: the room of the
//! submission queue, descriptors, cancels, and the delivery of completions. Checks that the engine
//! keeps its side of the contract. Must not know: how bytes travel.

mod accept;
mod close;
mod connect;
mod hangup;
mod recv;
mod recv_into;
mod send;
mod shutdown;

use super::engine_state::{Endpoint, EngineState};
use super::events::Event;
use super::faults::Fault;
use super::net::Net;
use super::sock::{ListenId, RecvTarget, SockId};
use super::trace::Kind;
use crate::backend::OpKind;
use crate::error::Errno;
use crate::id::Key;
use crate::waker::WakerShared;
use std::sync::Arc;

/// An entry of the queue of what is ready for an engine. Data stays with its socket until the
/// engine takes the entry.
#[derive(Debug)]
pub(crate) enum Ready {
    /// An operation has completed.
    Completed(Key, OpKind, Result<usize, Errno>),
    /// An armed receive can be tried.
    Recv(SockId),
    /// An armed accept can be tried.
    Accept(ListenId),
}

/// What [`Net::next`] returns.
#[derive(Debug)]
pub(crate) enum NetOutcome {
    /// An operation has ended.
    Completed(Key, OpKind, Result<usize, Errno>),
    /// A receive put `bytes` bytes into the [`Sink`]. With `more`, it stays armed.
    Received {
        key: Key,
        more: bool,
        bytes: usize,
    },
    Accepted {
        listener: Key,
        sock: SockId,
        more: bool,
    },
}

/// The memory of the receive that is being completed.
pub(crate) trait Sink {
    /// Selects the buffer. Returns its room in bytes; `None` if the pool has no buffer.
    fn room(&mut self, key: Key, target: RecvTarget) -> Option<usize>;
    /// Appends bytes to the selected buffer.
    fn put(&mut self, bytes: &[u8]);
}

/// An operation cannot be started: [`Fault::QueueFull`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

pub(super) const CANCELED: Errno = Errno(libc::ECANCELED);

impl Net {
    pub(crate) fn add_engine(&mut self, host: u32, waker_shared: Arc<WakerShared>) -> u32 {
        let id = self.engines.len() as u32;
        self.engines.push(EngineState::new(host, waker_shared));
        self.trace.add(self.now, Kind::Engine, id, u64::from(host), 0);
        id
    }

    pub(super) fn host_of_engine(&self, engine: u32) -> u32 {
        self.engines[engine as usize].host
    }

    /// Checks that an operation can be started now.
    pub(crate) fn check_queue(&mut self, engine: u32) -> Result<(), QueueFull> {
        let host = self.host_of_engine(engine);
        if self.draw_fault(host, Fault::QueueFull) { Err(QueueFull) } else { Ok(()) }
    }

    /// The program of an engine has exited: the kernel closes its sockets.
    pub(crate) fn close_engine(&mut self, engine: u32) {
        let state = &mut self.engines[engine as usize];
        let open = state.endpoints();
        state.terminate();
        open.into_iter().for_each(|endpoint| match endpoint {
            Endpoint::Conn(sock) => self.close(sock, false),
            Endpoint::Listener(listener) => self.close_listener(listener),
        });
    }

    /// An engine is about to wait. True if a fault ends the wait at once.
    pub(crate) fn begin_wait(&mut self, engine: u32) -> bool {
        let host = self.host_of_engine(engine);
        if !self.engines[engine as usize].is_dead() && self.draw_fault(host, Fault::Crash) {
            self.crash(host);
            let at = self.now + self.draw_outage_ns();
            self.events.push(at, Event::Restart(host));
        }
        self.draw_fault(host, Fault::EarlyWait)
    }

    pub(super) fn take_descriptor(&mut self, host: u32) -> Result<(), Errno> {
        let state = &self.hosts[host as usize];
        if state.descriptors >= state.descriptors_max || self.draw_fault(host, Fault::Descriptors) {
            return Err(Errno(libc::EMFILE));
        }
        self.hosts[host as usize].descriptors += 1;
        Ok(())
    }

    pub(crate) fn cancel(&mut self, engine: u32, key: Key, kind: OpKind) {
        self.trace.add(self.now, Kind::Cancel, engine, key.slot() as u64, kind as u64);
        let host = self.host_of_engine(engine);
        match self.draw_fault(host, Fault::CancelLoses) {
            true => {
                let at = self.now + self.draw_delay_ns();
                self.events.push(at, Event::Cancel { engine, key, kind });
            }
            false => self.cancel_now(engine, key, kind),
        }
    }

    pub(crate) fn cancel_now(&mut self, engine: u32, key: Key, kind: OpKind) {
        let armed = match kind {
            OpKind::Accept => self.disarm_accept(engine, key),
            OpKind::Connect => self.disarm_connect(engine, key),
            OpKind::Recv => self.disarm_recv(engine, key),
            OpKind::Send => self.disarm_send(engine, key),
            OpKind::Hangup => self.disarm_hangup(engine, key),
            OpKind::Close => false,
        };
        if !armed {
            // It has completed: the engine takes that completion.
            return;
        }
        self.trace.add(self.now, Kind::Cancelled, engine, key.slot() as u64, kind as u64);
        let ready = Ready::Completed(key, kind, Err(CANCELED));
        let host = self.host_of_engine(engine);
        match self.draw_fault(host, Fault::LateFinal) {
            true => {
                let at = self.now + self.draw_delay_ns();
                self.events.push_ready(at, engine, ready);
            }
            false => self.make_ready(engine, ready),
        }
    }

    /// The next completion of an engine.
    pub(crate) fn next(&mut self, engine: u32, sink: &mut impl Sink) -> Option<NetOutcome> {
        loop {
            let outcome = match self.engines[engine as usize].take_ready()? {
                Ready::Completed(key, kind, result) => {
                    match kind {
                        OpKind::Send if result.is_err() => self.send_error_reported(engine, key),
                        OpKind::Connect => self.start_first_send(engine, key, result.is_ok()),
                        _ => {}
                    }
                    Some(NetOutcome::Completed(key, kind, result))
                }
                Ready::Accept(id) => self.next_accept(id),
                Ready::Recv(id) => self.next_recv(engine, id, sink),
            };
            if outcome.is_some() {
                self.completions += 1;
                return outcome;
            }
        }
    }
}
