//! The table of endpoints: connections and listeners. Owns: the endpoints, and the number of each
//! kind. Invariant: a key names at most one endpoint of one engine. Must not know their states.

use super::accept::Listener;
use super::conn::Conn;
use crate::id::{EngineNumber, Key};
use crate::table::Table;

#[derive(Debug)]
enum Endpoint {
    Conn(Conn),
    Listener(Box<Listener>),
}

#[derive(Debug)]
pub(super) struct Endpoints {
    table: Table<Endpoint>,
    listeners: usize,
}

impl Endpoints {
    pub(super) fn new(engine: EngineNumber, reserved: usize) -> Endpoints {
        Endpoints { table: Table::new(engine, reserved), listeners: 0 }
    }

    pub(super) fn conns_len(&self) -> usize {
        self.table.len() - self.listeners
    }

    pub(super) fn listeners_len(&self) -> usize {
        self.listeners
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn insert_conn(&mut self, conn: Conn) -> Key {
        self.table.insert(Endpoint::Conn(conn))
    }

    pub(super) fn insert_listener(&mut self, listener: Box<Listener>) -> Key {
        self.listeners += 1;
        self.table.insert(Endpoint::Listener(listener))
    }

    #[inline]
    pub(super) fn conn(&self, key: Key) -> Option<&Conn> {
        match self.table.get(key) {
            Some(Endpoint::Conn(conn)) => Some(conn),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn conn_mut(&mut self, key: Key) -> Option<&mut Conn> {
        match self.table.get_mut(key) {
            Some(Endpoint::Conn(conn)) => Some(conn),
            _ => None,
        }
    }

    pub(super) fn listener(&self, key: Key) -> Option<&Listener> {
        match self.table.get(key) {
            Some(Endpoint::Listener(listener)) => Some(listener),
            _ => None,
        }
    }

    pub(super) fn listener_mut(&mut self, key: Key) -> Option<&mut Listener> {
        match self.table.get_mut(key) {
            Some(Endpoint::Listener(listener)) => Some(listener),
            _ => None,
        }
    }

    pub(super) fn is_listener(&self, key: Key) -> bool {
        self.listener(key).is_some()
    }

    pub(super) fn remove_conn(&mut self, key: Key) -> Option<Conn> {
        self.conn(key)?;
        match self.table.remove(key)? {
            Endpoint::Conn(conn) => Some(conn),
            Endpoint::Listener(_) => None,
        }
    }

    pub(super) fn remove_listener(&mut self, key: Key) -> Option<Box<Listener>> {
        self.listener(key)?;
        match self.table.remove(key)? {
            Endpoint::Listener(listener) => {
                self.listeners -= 1;
                Some(listener)
            }
            Endpoint::Conn(_) => None,
        }
    }

    pub(super) fn conns(&self) -> impl Iterator<Item = (Key, &Conn)> {
        self.table.iter().filter_map(|(key, endpoint)| match endpoint {
            Endpoint::Conn(conn) => Some((key, conn)),
            Endpoint::Listener(_) => None,
        })
    }

    pub(super) fn listeners(&self) -> impl Iterator<Item = (Key, &Listener)> {
        self.table.iter().filter_map(|(key, endpoint)| match endpoint {
            Endpoint::Listener(listener) => Some((key, &**listener)),
            Endpoint::Conn(_) => None,
        })
    }

    pub(super) fn conn_keys(&self) -> Vec<Key> {
        self.conns().map(|(key, _)| key).collect()
    }

    pub(super) fn listener_keys(&self) -> Vec<Key> {
        self.listeners().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_fits_a_cache_line() {
        assert_eq!(size_of::<Endpoint>(), 56);
        assert_eq!(Table::<Endpoint>::ENTRY_BYTES, 64);
    }
}
