//! A slot table with generations. Owns: its slots and their values. Invariant: a removed [`Key`]
//! finds no entry again, and neither does the key of another engine; a slot whose generations are
//! used up is retired. Must not know what is stored, and makes no system call.

use crate::id::{EngineNumber, Key};

/// The end of the list of free slots.
const NO_SLOT: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: Vec<Entry<T>>,
    engine: EngineNumber,
    /// The head of the list of free slots: the slot that was freed last.
    free: u32,
    len: usize,
}

/// A slot. The key is stored next to the value, so that a lookup touches one cache line.
#[derive(Debug)]
struct Entry<T> {
    /// The key of the value in the slot, or of the next one.
    key: Key,
    place: Place<T>,
}

#[derive(Debug)]
enum Place<T> {
    Taken(T),
    /// The next free slot.
    Free(u32),
    /// All generations of the slot are used up.
    Retired,
}

/// The most entries for which a new table reserves address space. The kernel allocates pages as
/// slots are used, and no growth copies entries.
pub(crate) const RESERVED_MAX: usize = 1 << 18;

impl<T> Table<T> {
    #[cfg(test)]
    pub(crate) const ENTRY_BYTES: usize = size_of::<Entry<T>>();

    /// An empty table of an engine, with address space for `reserved` entries.
    pub(crate) fn new(engine: EngineNumber, reserved: usize) -> Self {
        Table {
            entries: Vec::with_capacity(reserved.min(RESERVED_MAX)),
            engine,
            free: NO_SLOT,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Stores `value` in a free slot. The caller enforces limits.
    ///
    /// # Panics
    /// If all [`Key::SLOTS_MAX`] slots are in use.
    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if self.free == NO_SLOT {
            assert!(self.entries.len() < Key::SLOTS_MAX, "a table has at most 16,777,215 slots");
            let key = Key::new(self.entries.len(), 1, self.engine);
            self.entries.push(Entry { key, place: Place::Taken(value) });
            return key;
        }
        let entry = &mut self.entries[self.free as usize];
        if let Place::Free(next) = entry.place {
            self.free = next;
        }
        entry.place = Place::Taken(value);
        entry.key
    }

    pub(crate) fn contains(&self, key: Key) -> bool {
        self.get(key).is_some()
    }

    #[inline]
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.slot()) {
            Some(Entry { key: own, place: Place::Taken(value) }) if *own == key => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.slot()) {
            Some(Entry { key: own, place: Place::Taken(value) }) if *own == key => Some(value),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        if !self.contains(key) {
            return None;
        }
        self.len -= 1;
        let slot = key.slot();
        let entry = &mut self.entries[slot];
        let place = match entry.key.generation() {
            Key::GENERATION_MAX => Place::Retired,
            generation => {
                entry.key = Key::new(slot, generation + 1, self.engine);
                Place::Free(std::mem::replace(&mut self.free, slot as u32))
            }
        };
        match std::mem::replace(&mut entry.place, place) {
            Place::Taken(value) => Some(value),
            Place::Free(_) | Place::Retired => None,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().filter_map(|entry| match &entry.place {
            Place::Taken(value) => Some((entry.key, value)),
            Place::Free(_) | Place::Retired => None,
        })
    }

    #[cfg(test)]
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        self.iter().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_slot_without_generations_left_is_retired() {
        let mut table = Table::new(EngineNumber::TEST, 8);
        let first = table.insert('a');
        let last = Key::new(0, Key::GENERATION_MAX, EngineNumber::TEST);
        table.entries[0].key = last;
        assert_eq!(table.remove(last), Some('a'));
        assert_eq!((table.len(), table.get(last), table.get(first)), (0, None, None));
        assert_eq!(table.insert('b').slot(), 1, "slot 0 is never used again");
        assert_eq!(table.keys().count(), 1);
    }

    proptest! {
        /// Compares the table with a map that keeps all keys ever given out.
        #[test]
        fn behaves_like_a_map_of_unique_keys(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..400)
        ) {
            let mut table = Table::new(EngineNumber::TEST, 0);
            let mut model: HashMap<Key, usize> = HashMap::new();
            let mut given: Vec<Key> = Vec::new();
            for (count, (insert, pick)) in steps.into_iter().enumerate() {
                if insert || given.is_empty() {
                    let key = table.insert(count);
                    let is_new = model.insert(key, count).is_none() && !given.contains(&key);
                    prop_assert!(is_new, "key given out twice");
                    given.push(key);
                } else {
                    let key = *pick.get(&given);
                    prop_assert_eq!(table.remove(key), model.remove(&key));
                }
                prop_assert_eq!(table.len(), model.len());
                for key in &given {
                    prop_assert_eq!(table.get(*key), model.get(key));
                }
            }
        }
    }
}
