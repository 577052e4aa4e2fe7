//! A slot table with generations. Owns: who occupies which slot. Invariant: a [`Key`] that was removed never finds an
//! entry again; a slot whose generations are used up is retired. Must not know what is stored, and does no syscall.

use crate::id::Key;
use crate::mutant::{self, Mutant};
use slab::Slab;
use std::num::NonZeroU32;

#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: Slab<Entry<T>>,
    /// The generation of the present occupant, or of the next one: for when a slot is taken or left.
    generations: Vec<NonZeroU32>,
    retired: usize,
    limit: usize,
}

/// The generation lies beside what is looked up, so that a look-up touches one cache line.
#[derive(Debug)]
struct Entry<T> {
    generation: NonZeroU32,
    /// `None` marks a retired slot.
    value: Option<T>,
}

/// Address space for so many entries is set aside at once: memory comes as slots are used, and growing moves nothing.
pub(crate) const RESERVED_MAX: usize = 1 << 18;

impl<T> Table<T> {
    pub(crate) fn with_limit(limit: usize) -> Self {
        let reserved = limit.min(RESERVED_MAX);
        Table {
            entries: Slab::with_capacity(reserved),
            generations: Vec::with_capacity(reserved),
            retired: 0,
            limit: limit.min(u32::MAX as usize - 1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.retired
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Puts `value` in a free slot, even beyond the limit (which callers check with [`Table::is_full`]).
    pub(crate) fn insert(&mut self, value: T) -> Key {
        let place = self.entries.vacant_entry();
        let index = place.key();
        if index == self.generations.len() {
            self.generations.push(NonZeroU32::MIN);
        }
        assert!(index < u32::MAX as usize, "slot numbers fit 32 bits");
        let generation = self.generations[index];
        place.insert(Entry { generation, value: Some(value) });
        Key { slot: index as u32, generation }
    }

    pub(crate) fn contains(&self, key: Key) -> bool {
        self.get(key).is_some()
    }

    #[inline]
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.slot as usize) {
            Some(entry) if entry.generation == key.generation || mutant::is(Mutant::StaleHit) => entry.value.as_ref(),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.slot as usize) {
            Some(entry) if entry.generation == key.generation || mutant::is(Mutant::StaleHit) => entry.value.as_mut(),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        if !self.contains(key) {
            return None;
        }
        let index = key.slot as usize;
        match key.generation.checked_add(1) {
            Some(next) => {
                self.generations[index] = next;
                self.entries.remove(index).value
            }
            None => {
                self.retired += 1;
                self.entries[index].value.take()
            }
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.value.is_some())
            .map(|(index, entry)| Key { slot: index as u32, generation: entry.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_slot_out_of_generations_is_retired() {
        let mut table = Table::with_limit(8);
        let first = table.insert('a');
        table.entries[0].generation = NonZeroU32::MAX;
        let last = Key { generation: NonZeroU32::MAX, ..first };
        assert_eq!(table.remove(last), Some('a'));
        assert_eq!((table.len(), table.get(last), table.get(first)), (0, None, None));
        assert_eq!(table.insert('b').slot, 1, "slot 0 is never used again");
        assert_eq!(table.keys().count(), 1);
    }

    proptest! {
        /// Against a map that never forgets a key.
        #[test]
        fn behaves_like_a_map_of_unique_keys(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..400)) {
            let mut table = Table::with_limit(usize::MAX);
            let mut model: HashMap<Key, usize> = HashMap::new();
            let mut given: Vec<Key> = Vec::new();
            for (count, (insert, pick)) in steps.into_iter().enumerate() {
                if insert || given.is_empty() {
                    let key = table.insert(count);
                    prop_assert!(model.insert(key, count).is_none() && !given.contains(&key), "key given out twice");
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
