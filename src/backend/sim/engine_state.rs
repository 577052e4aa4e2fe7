//! The network's state of one engine. Owns: the sockets and listeners of its keys, the queue of
//! what is ready for it, and the flags that it reads without the world's lock. Must not know: what
//! an engine does with a completion.

use super::op::Ready;
use super::sock::{ListenId, SockId};
use crate::id::Key;
use crate::waker::WakerShared;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The part of the state that an engine reads without the world's lock.
#[derive(Debug, Default)]
pub(crate) struct Status {
    ready: AtomicUsize,
    dead: AtomicBool,
}

impl Status {
    pub(crate) fn has_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct EngineState {
    pub(crate) host: u32,
    pub(crate) waker_shared: Arc<WakerShared>,
    ready: VecDeque<Ready>,
    pub(crate) status: Arc<Status>,
    /// When it must be polled even if nothing is ready.
    pub(crate) deadline: Option<u64>,
    slots: Vec<Slot>,
    /// Keys whose connect failed without a socket, and had a first send. The send fails after the
    /// engine has taken the completion of the connect.
    pub(crate) first_sends_failed: Vec<Key>,
}

/// The connection or listener that a key names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Endpoint {
    Conn(SockId),
    Listener(ListenId),
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: Option<Key>,
    endpoint: Option<Endpoint>,
}

impl EngineState {
    pub(crate) fn new(host: u32, waker_shared: Arc<WakerShared>) -> EngineState {
        EngineState {
            host,
            waker_shared,
            ready: VecDeque::new(),
            status: Arc::default(),
            deadline: None,
            slots: Vec::new(),
            first_sends_failed: Vec::new(),
        }
    }

    pub(crate) fn terminate(&mut self) {
        self.status.dead.store(true, Ordering::Relaxed);
        self.ready.clear();
        self.publish_ready_len();
        self.deadline = None;
        self.slots.clear();
        self.first_sends_failed.clear();
    }

    fn publish_ready_len(&self) {
        self.status.ready.store(self.ready.len(), Ordering::Relaxed);
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.status.is_dead()
    }

    pub(crate) fn insert_ready(&mut self, index: usize, ready: Ready) {
        self.ready.insert(index, ready);
        self.publish_ready_len();
    }

    pub(crate) fn take_ready(&mut self) -> Option<Ready> {
        let ready = self.ready.pop_front();
        self.publish_ready_len();
        ready
    }

    /// All endpoints: connections first, then listeners.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let all = || self.slots.iter().filter_map(|slot| slot.endpoint);
        let conns = all().filter(|endpoint| matches!(endpoint, Endpoint::Conn(_)));
        conns.chain(all().filter(|endpoint| matches!(endpoint, Endpoint::Listener(_)))).collect()
    }

    fn endpoint(&self, key: Key) -> Option<Endpoint> {
        self.slots.get(key.slot()).filter(|slot| slot.key == Some(key))?.endpoint
    }

    pub(crate) fn conn(&self, key: Key) -> Option<SockId> {
        match self.endpoint(key)? {
            Endpoint::Conn(sock) => Some(sock),
            Endpoint::Listener(_) => None,
        }
    }

    pub(crate) fn listener(&self, key: Key) -> Option<ListenId> {
        match self.endpoint(key)? {
            Endpoint::Listener(listener) => Some(listener),
            Endpoint::Conn(_) => None,
        }
    }

    /// Gives a key to an endpoint, or to `None` if its socket could not be created.
    pub(crate) fn insert(&mut self, key: Key, endpoint: Option<Endpoint>) {
        let index = key.slot();
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Slot::default());
        }
        assert!(self.slots[index].endpoint.is_none(), "the last key of the slot was not closed");
        self.slots[index] = Slot { key: Some(key), endpoint };
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Endpoint> {
        let slot = self.slots.get_mut(key.slot()).filter(|slot| slot.key == Some(key))?;
        std::mem::take(slot).endpoint
    }
}
