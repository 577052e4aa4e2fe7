//! A hierarchical timer wheel. Owns: the pending timers. Invariant: a timer never fires early, and
//! the wheel delays it by at most one tick (65.5 microseconds); add, reset and cancel are O(1).
//! Must not know a clock: the caller passes the time, in nanoseconds since the engine's epoch.
//!
//! The wheel has seven levels of 64 lists. The level of a timer is the highest six-bit digit in
//! which its tick differs from the current tick, so that each timer moves down at most six times.
//! Lists are circular and doubly linked, by keys of the table.

use crate::id::{EngineNumber, Key};
use crate::table::Table;

const TICK_SHIFT: u32 = 16;
const DIGIT_BITS: u32 = 6;
const LISTS: usize = 1 << DIGIT_BITS;
const LEVELS: usize = 7;
/// The list of due timers.
const DUE: usize = LEVELS * LISTS;

/// The owner of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The caller of the engine.
    User { tag: u64 },
    /// A connection or listener.
    Endpoint(Key),
}

#[derive(Debug)]
struct Node {
    tick: u64,
    owner: Owner,
    list: u16,
    previous: Key,
    next: Key,
}

#[derive(Debug)]
pub(crate) struct Wheel {
    now: u64,
    nodes: Table<Node>,
    heads: Box<[Key; DUE + 1]>,
    /// One bit per list: set if it is not empty.
    occupied: [u64; LEVELS],
}

impl Wheel {
    pub(crate) fn new(engine: EngineNumber) -> Wheel {
        Wheel {
            now: 0,
            nodes: Table::new(engine, 0),
            heads: Box::new([Key::NONE; DUE + 1]),
            occupied: [0; LEVELS],
        }
    }

    #[cfg(feature = "sim")]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Adds a timer. The caller enforces limits.
    pub(crate) fn add(&mut self, deadline_ns: u64, owner: Owner) -> Key {
        let node = Node {
            tick: tick_of(deadline_ns),
            owner,
            list: 0,
            previous: Key::NONE,
            next: Key::NONE,
        };
        let key = self.nodes.insert(node);
        self.link(key);
        key
    }

    pub(crate) fn cancel(&mut self, key: Key) -> bool {
        if !self.nodes.contains(key) {
            return false;
        }
        self.unlink(key);
        self.nodes.remove(key).is_some()
    }

    /// Gives a timer another deadline, also if it is due.
    pub(crate) fn reset(&mut self, key: Key, deadline_ns: u64) -> bool {
        if !self.nodes.contains(key) {
            return false;
        }
        self.unlink(key);
        self.node(key).tick = tick_of(deadline_ns);
        self.link(key);
        true
    }

    /// The time at which [`Wheel::advance`] has to be called next: the deadline of the next timer,
    /// or earlier.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        if self.heads[DUE] != Key::NONE {
            return Some(self.now << TICK_SHIFT);
        }
        self.next_list().map(|(_, tick)| tick << TICK_SHIFT)
    }

    /// Sets the time, and moves timers whose deadline has come to the list of due timers.
    pub(crate) fn advance(&mut self, now_ns: u64) {
        let target = now_ns >> TICK_SHIFT;
        while let Some((list, tick)) = self.next_list() {
            if tick > target {
                break;
            }
            self.now = self.now.max(tick);
            let mut key = self.heads[list];
            while key != Key::NONE {
                self.unlink(key);
                self.link(key);
                key = self.heads[list];
            }
        }
        self.now = self.now.max(target);
    }

    /// Removes the first due timer.
    pub(crate) fn pop_due(&mut self) -> Option<(Key, Owner)> {
        let key = self.heads[DUE];
        if key == Key::NONE {
            return None;
        }
        self.unlink(key);
        self.nodes.remove(key).map(|node| (key, node.owner))
    }

    fn node(&mut self, key: Key) -> &mut Node {
        self.nodes.get_mut(key).expect("links are keys of pending timers")
    }

    /// The next list to process, and the tick at which it is processed.
    fn next_list(&self) -> Option<(usize, u64)> {
        (0..LEVELS)
            .filter(|level| self.occupied[*level] != 0)
            .map(|level| self.first_of_level(level))
            .min_by_key(|f| f.1)
    }

    fn first_of_level(&self, level: usize) -> (usize, u64) {
        let shift = level as u32 * DIGIT_BITS;
        let current = (self.now >> shift) as u32 % LISTS as u32;
        let distance = self.occupied[level].rotate_right(current).trailing_zeros();
        let index = (current + distance) as usize % LISTS;
        // On the top level a list at distance 0 is one revolution away, or due because `link`
        // clamps ticks.
        let tick = ((self.now >> shift) + u64::from(distance)) << shift;
        (level * LISTS + index, tick.max(self.now))
    }

    fn link(&mut self, key: Key) {
        let now = self.now;
        let node = self.node(key);
        let list = if node.tick <= now {
            DUE
        } else {
            // A timer beyond the range of the wheel (nine years) goes to the last list, and is
            // linked again when that list is processed.
            let horizon = now.saturating_add((1 << (DIGIT_BITS * LEVELS as u32 - 1)) - 1);
            let tick = node.tick.min(horizon);
            let digit = (63 - ((tick ^ now) | (LISTS as u64 - 1)).leading_zeros()) / DIGIT_BITS;
            let level = digit.min(LEVELS as u32 - 1);
            level as usize * LISTS + ((tick >> (level * DIGIT_BITS)) as usize % LISTS)
        };
        node.list = list as u16;
        let head = self.heads[list];
        if head == Key::NONE {
            let node = self.node(key);
            (node.previous, node.next) = (key, key);
            self.heads[list] = key;
            if list != DUE {
                self.occupied[list / LISTS] |= 1 << (list % LISTS);
            }
        } else {
            let tail = std::mem::replace(&mut self.node(head).previous, key);
            self.node(tail).next = key;
            let node = self.node(key);
            (node.previous, node.next) = (tail, head);
        }
    }

    fn unlink(&mut self, key: Key) {
        let node = self.node(key);
        let (previous, next, list) = (node.previous, node.next, node.list as usize);
        if next == key {
            self.heads[list] = Key::NONE;
            if list != DUE {
                self.occupied[list / LISTS] &= !(1 << (list % LISTS));
            }
            return;
        }
        self.node(previous).next = next;
        self.node(next).previous = previous;
        if self.heads[list] == key {
            self.heads[list] = next;
        }
    }
}

/// The tick of a deadline, rounded up, because a timer must not fire early. The largest deadline,
/// 584 years after the epoch, is rounded down to the last whole tick.
fn tick_of(deadline_ns: u64) -> u64 {
    deadline_ns.div_ceil(1 << TICK_SHIFT).min(u64::MAX >> TICK_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TICK_NS: u64 = 1 << TICK_SHIFT;

    fn drain(wheel: &mut Wheel) -> Vec<u64> {
        std::iter::from_fn(|| wheel.pop_due())
            .map(|(_, owner)| match owner {
                Owner::User { tag } => tag,
                other => panic!("unexpected {other:?}"),
            })
            .collect()
    }

    #[test]
    fn an_overdue_timer_is_due_at_once() {
        let mut wheel = Wheel::new(EngineNumber::TEST);
        wheel.advance(50 * TICK_NS);
        wheel.add(3 * TICK_NS, Owner::User { tag: 1 });
        assert!(wheel.next_deadline_ns().expect("one timer") <= 50 * TICK_NS);
        assert_eq!(drain(&mut wheel), [1]);
    }

    #[test]
    fn a_due_timer_can_still_be_cancelled_or_moved() {
        let mut wheel = Wheel::new(EngineNumber::TEST);
        let cancelled = wheel.add(1, Owner::User { tag: 1 });
        let moved = wheel.add(1, Owner::User { tag: 2 });
        wheel.advance(TICK_NS * 2);
        assert!(wheel.cancel(cancelled) && !wheel.cancel(cancelled));
        assert!(wheel.reset(moved, 100 * TICK_NS));
        assert_eq!(drain(&mut wheel), []);
        wheel.advance(100 * TICK_NS);
        assert_eq!(drain(&mut wheel), [2]);
        assert!(!wheel.reset(moved, 0));
    }

    #[test]
    fn deadlines_beyond_the_wheel_are_kept() {
        let mut wheel = Wheel::new(EngineNumber::TEST);
        wheel.advance(12345 * TICK_NS);
        let far = u64::MAX;
        wheel.add(far, Owner::User { tag: 7 });
        for _ in 0..100_000 {
            let Some(next) = wheel.next_deadline_ns() else { break };
            assert!(drain(&mut wheel).is_empty(), "fired early at {next}");
            if next >> TICK_SHIFT >= far >> TICK_SHIFT {
                return;
            }
            let before = wheel.now;
            wheel.advance(next);
            assert!(wheel.now > before, "the wheel must make progress");
        }
        panic!("the wheel did not reach the deadline");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u64),
        Cancel(prop::sample::Index),
        Reset(prop::sample::Index, u64),
        Advance(u64),
        /// Advance to `next_deadline_ns`.
        AdvanceToNext,
    }

    fn span() -> impl Strategy<Value = u64> {
        (0u32..52, any::<u64>()).prop_map(|(bits, value)| value & ((1 << bits) - 1))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => span().prop_map(Step::Add),
            1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
            1 => (any::<prop::sample::Index>(), span()).prop_map(|(i, s)| Step::Reset(i, s)),
            2 => span().prop_map(Step::Advance),
            2 => Just(Step::AdvanceToNext),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        /// Compares the wheel with a sorted map: it fires exactly the due timers, in order of
        /// ticks, and `next_deadline_ns` is never too late.
        #[test]
        fn behaves_like_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new(EngineNumber::TEST);
            let mut model: BTreeMap<u64, (Key, u64)> = BTreeMap::new();
            let (mut now, mut tag) = (0u64, 0u64);
            for step in steps {
                match step {
                    Step::Add(span) => {
                        tag += 1;
                        let key = wheel.add(now + span, Owner::User { tag });
                        model.insert(tag, (key, now + span));
                    }
                    Step::Cancel(pick) if !model.is_empty() => {
                        let tag = *pick.get(&model.keys().copied().collect::<Vec<_>>());
                        let (key, _) = model.remove(&tag).expect("picked from the model");
                        prop_assert!(wheel.cancel(key));
                        prop_assert!(!wheel.cancel(key));
                    }
                    Step::Reset(pick, span) if !model.is_empty() => {
                        let tag = *pick.get(&model.keys().copied().collect::<Vec<_>>());
                        let entry = model.get_mut(&tag).expect("picked from the model");
                        entry.1 = now + span;
                        prop_assert!(wheel.reset(entry.0, now + span));
                    }
                    Step::Advance(span) => now += span,
                    Step::AdvanceToNext => now = now.max(wheel.next_deadline_ns().unwrap_or(now)),
                    _ => {}
                }
                wheel.advance(now);
                let fired = drain(&mut wheel);
                let mut last = 0;
                for tag in fired {
                    let (_, deadline) =
                        model.remove(&tag).expect("a timer fires once, while it is pending");
                    prop_assert!(deadline <= now, "fired early");
                    // Timers that were overdue when added fire in the order of adding.
                    let tick = tick_of(deadline);
                    if matches!(step, Step::Advance(_) | Step::AdvanceToNext) {
                        prop_assert!(tick >= last, "out of order");
                        last = tick;
                    }
                }
                let next = wheel.next_deadline_ns();
                prop_assert_eq!(next.is_none(), model.is_empty());
                for (_, deadline) in model.values() {
                    prop_assert!(tick_of(*deadline) > now >> TICK_SHIFT, "missed");
                    prop_assert!(next.expect("checked above") < deadline + TICK_NS);
                }
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
