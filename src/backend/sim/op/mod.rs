//! What engines want of the world, one file an operation. Owns: what the operations share, which is
//! room, descriptors, cancels, and the way of what has completed to the engine. Checks the engine's
//! side of the contract as it goes.

mod accept;
mod close;
mod connect;
mod hangup;
mod recv;
mod recv_into;
mod send;
mod shutdown;

use super::events::Event;
use super::faults::Fault;
use super::net::Net;
use super::sock::{ListenId, Recv, SockId};
use super::trace::Kind;
use super::view::{View, What};
use crate::backend::OpKind;
use crate::error::Errno;
use crate::id::Key;
use crate::waker::Inbox;
use std::sync::Arc;

/// What waits to be told to an engine. Data stays with its socket until the engine takes it.
#[derive(Debug)]
pub(crate) enum Notice {
    Done(Key, OpKind, Result<usize, Errno>),
    Recv(SockId),
    Accept(ListenId),
}

/// What an engine is told.
#[derive(Debug)]
pub(crate) enum Told {
    Done(Key, OpKind, Result<usize, Errno>),
    /// So many bytes were put; with `more`, others may follow without a new start.
    Data {
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

/// Where received bytes go.
pub(crate) trait Sink {
    /// How much there is room for now; `None` without a buffer.
    fn room(&mut self, key: Key, how: Recv) -> Option<usize>;
    fn put(&mut self, bytes: &[u8]);
}

/// The fault plan says that there is no room to start an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

pub(super) const CANCELED: Errno = Errno(libc::ECANCELED);

impl Net {
    pub(crate) fn add_engine(&mut self, host: u32, inbox: Arc<Inbox>) -> u32 {
        let id = self.engines.len() as u32;
        self.engines.push(View::new(host, inbox));
        self.trace.add(self.now, Kind::Engine, id, u64::from(host), 0);
        id
    }

    pub(super) fn host_of_engine(&self, engine: u32) -> u32 {
        self.engines[engine as usize].host
    }

    /// Whether an operation cannot be started now.
    pub(crate) fn queue_full(&mut self, engine: u32) -> Result<(), QueueFull> {
        let host = self.host_of_engine(engine);
        if self.chance(host, Fault::QueueFull) { Err(QueueFull) } else { Ok(()) }
    }

    /// The program of an engine is gone: its kernel closes what it had open.
    pub(crate) fn exit(&mut self, engine: u32) {
        let state = &mut self.engines[engine as usize];
        let open = state.all();
        state.die();
        open.into_iter().for_each(|what| match what {
            What::Conn(sock) => self.close(sock, false),
            What::Listener(listener) => self.close_listener(listener),
        });
    }

    /// An engine is about to wait. True if a fault ends the wait before it began.
    pub(crate) fn engine_waits(&mut self, engine: u32) -> bool {
        let host = self.host_of_engine(engine);
        if !self.engines[engine as usize].is_dead() && self.chance(host, Fault::Crash) {
            self.crash(host);
            let at = self.now + self.some_outage();
            self.events.push(at, Event::Restart(host));
        }
        self.chance(host, Fault::EarlyWait)
    }

    pub(super) fn take_descriptor(&mut self, host: u32) -> Result<(), Errno> {
        let state = &self.hosts[host as usize];
        if state.descriptors >= state.descriptors_max || self.chance(host, Fault::Descriptors) {
            return Err(Errno(libc::EMFILE));
        }
        self.hosts[host as usize].descriptors += 1;
        Ok(())
    }

    pub(crate) fn cancel(&mut self, engine: u32, key: Key, kind: OpKind) {
        self.trace.add(self.now, Kind::Cancel, engine, key.slot() as u64, kind as u64);
        let host = self.host_of_engine(engine);
        match self.chance(host, Fault::CancelLoses) {
            true => {
                let at = self.now + self.some_delay();
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
            OpKind::Hangup => self.disarm_watch(engine, key),
            OpKind::Close => false,
        };
        if !armed {
            // It has completed, and is told or about to be.
            return;
        }
        self.trace.add(self.now, Kind::Cancelled, engine, key.slot() as u64, kind as u64);
        let notice = Notice::Done(key, kind, Err(CANCELED));
        let host = self.host_of_engine(engine);
        match self.chance(host, Fault::LateFinal) {
            true => {
                let at = self.now + self.some_delay();
                self.events.tell(at, engine, notice);
            }
            false => self.notify(engine, notice),
        }
    }

    /// Tells an engine the next thing.
    pub(crate) fn next(&mut self, engine: u32, sink: &mut impl Sink) -> Option<Told> {
        loop {
            let told = match self.engines[engine as usize].take_ready()? {
                Notice::Done(key, kind, result) => {
                    match kind {
                        OpKind::Send if result.is_err() => self.failure_told(engine, key),
                        OpKind::Connect => self.begin_first_send(engine, key, result.is_ok()),
                        _ => {}
                    }
                    Some(Told::Done(key, kind, result))
                }
                Notice::Accept(id) => self.next_accept(id),
                Notice::Recv(id) => self.next_recv(engine, id, sink),
            };
            if told.is_some() {
                self.completions += 1;
                return told;
            }
        }
    }
}
