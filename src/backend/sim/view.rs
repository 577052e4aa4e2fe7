//! The world's view of one engine. Owns: which sockets and listeners its keys name, what is ready
//! for it, and the few words that it looks at without the world's lock.

use super::op::Notice;
use super::sock::{ListenId, SockId};
use crate::id::Key;
use crate::waker::Inbox;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What an engine looks at without the world's lock.
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
pub(crate) struct View {
    pub(crate) host: u32,
    pub(crate) inbox: Arc<Inbox>,
    ready: VecDeque<Notice>,
    pub(crate) status: Arc<Status>,
    /// When it wants to be polled although nothing happened.
    pub(crate) deadline: Option<u64>,
    places: Vec<Place>,
    /// First sends of connects that failed before there was a socket: told behind the failure.
    pub(crate) first_sends_lost: Vec<Key>,
}

/// What a key of the engine names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Conn(SockId),
    Listener(ListenId),
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    key: Option<Key>,
    what: Option<What>,
}

impl View {
    pub(crate) fn new(host: u32, inbox: Arc<Inbox>) -> View {
        View {
            host,
            inbox,
            ready: VecDeque::new(),
            status: Arc::default(),
            deadline: None,
            places: Vec::new(),
            first_sends_lost: Vec::new(),
        }
    }

    pub(crate) fn die(&mut self) {
        self.status.dead.store(true, Ordering::Relaxed);
        self.ready.clear();
        self.count_ready();
        self.deadline = None;
        self.places.clear();
        self.first_sends_lost.clear();
    }

    fn count_ready(&self) {
        self.status.ready.store(self.ready.len(), Ordering::Relaxed);
    }

    /// How much is ready.
    pub(crate) fn waiting(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.status.is_dead()
    }

    pub(crate) fn put_ready(&mut self, place: usize, notice: Notice) {
        self.ready.insert(place, notice);
        self.count_ready();
    }

    pub(crate) fn take_ready(&mut self) -> Option<Notice> {
        let notice = self.ready.pop_front();
        self.count_ready();
        notice
    }

    /// All sockets and listeners of it: first the connections.
    pub(crate) fn all(&self) -> Vec<What> {
        let all = || self.places.iter().filter_map(|place| place.what);
        let conns = all().filter(|what| matches!(what, What::Conn(_)));
        conns.chain(all().filter(|what| matches!(what, What::Listener(_)))).collect()
    }

    fn look(&self, key: Key) -> Option<What> {
        self.places.get(key.slot()).filter(|place| place.key == Some(key))?.what
    }

    pub(crate) fn conn(&self, key: Key) -> Option<SockId> {
        match self.look(key)? {
            What::Conn(sock) => Some(sock),
            What::Listener(_) => None,
        }
    }

    pub(crate) fn listener(&self, key: Key) -> Option<ListenId> {
        match self.look(key)? {
            What::Listener(listener) => Some(listener),
            What::Conn(_) => None,
        }
    }

    /// Notes what a key names; `None` if it never got a socket.
    pub(crate) fn put(&mut self, key: Key, what: Option<What>) {
        let index = key.slot();
        if self.places.len() <= index {
            self.places.resize(index + 1, Place::default());
        }
        assert!(self.places[index].what.is_none(), "a slot is used again only after its close");
        self.places[index] = Place { key: Some(key), what };
    }

    pub(crate) fn take(&mut self, key: Key) -> Option<What> {
        let place = self.places.get_mut(key.slot()).filter(|place| place.key == Some(key))?;
        std::mem::take(place).what
    }
}
