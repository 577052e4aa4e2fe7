//! The world's view of one engine. Owns: which sockets and listeners its keys name, what is ready for it, and the few words that it looks at
//! without the world's lock.

use super::ops::Notice;
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
    pub(crate) conns: Vec<Place<SockId>>,
    pub(crate) listeners: Vec<Place<ListenId>>,
}

/// What a key of the engine names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<T> {
    generation: u32,
    what: Option<T>,
}

impl View {
    pub(crate) fn new(host: u32, inbox: Arc<Inbox>) -> View {
        View {
            host,
            inbox,
            ready: VecDeque::new(),
            status: Arc::default(),
            deadline: None,
            conns: Vec::new(),
            listeners: Vec::new(),
        }
    }

    pub(crate) fn die(&mut self) {
        self.status.dead.store(true, Ordering::Relaxed);
        self.ready.clear();
        self.count_ready();
        self.deadline = None;
        self.conns.clear();
        self.listeners.clear();
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

    /// All sockets and listeners of it.
    pub(crate) fn all(&self) -> (Vec<SockId>, Vec<ListenId>) {
        let conns = self.conns.iter().filter_map(|place| place.what).collect();
        (conns, self.listeners.iter().filter_map(|place| place.what).collect())
    }

    pub(crate) fn conn(&self, key: Key) -> Option<SockId> {
        look(&self.conns, key)
    }

    pub(crate) fn listener(&self, key: Key) -> Option<ListenId> {
        look(&self.listeners, key)
    }
}

fn look<T: Copy>(places: &[Place<T>], key: Key) -> Option<T> {
    places.get(key.slot as usize).filter(|place| place.generation == key.generation.get())?.what
}

pub(crate) fn put<T: Copy>(places: &mut Vec<Place<T>>, key: Key, what: Option<T>) {
    let index = key.slot as usize;
    while places.len() <= index {
        places.push(Place { generation: 0, what: None });
    }
    assert!(places[index].what.is_none(), "a slot is used again only after its close");
    places[index] = Place { generation: key.generation.get(), what };
}

pub(crate) fn take<T: Copy>(places: &mut [Place<T>], key: Key) -> Option<T> {
    let place = places.get_mut(key.slot as usize).filter(|place| place.generation == key.generation.get())?;
    place.generation = 0;
    place.what.take()
}
