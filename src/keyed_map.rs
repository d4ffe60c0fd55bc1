//! A bounded map with one state per key; evicts the least recently used entry.
//!
//! Clients choose the keys, so both the number of entries and the length of a key are capped. An entry that is referenced
//! elsewhere is never evicted; if no entry can be evicted, further keys share one fallback state.
//!
//! A lookup that finds its key takes a read lock and writes only the reference count of the entry. Recency is counted in
//! insertions: all entries used since the last insertion are equally recent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

/// A host name has at most 253 characters, and a port six with its colon; longer keys share the fallback.
const MAX_KEY_LENGTH: usize = 260;

/// Whether an entry may be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Eviction {
    /// Evicted in order of recency.
    Evictable,
    /// Evicted only if no entry is `Evictable`.
    Late,
    /// Never evicted.
    Pinned,
}

/// A bounded map from keys to states.
#[derive(Debug)]
pub(crate) struct KeyedMap<T> {
    entries: RwLock<HashMap<Box<str>, Entry<T>>>,
    cap: usize,
    /// Number of insertions so far.
    insertions: AtomicU64,
    /// The shared state of keys without an entry.
    fallback: Arc<T>,
}

#[derive(Debug)]
struct Entry<T> {
    state: Arc<T>,
    /// Twice the number of insertions at its last use, plus one if it was used after its insertion.
    used: AtomicU64,
}

impl<T> KeyedMap<T> {
    /// A map of at most `cap` entries, with the shared state of all other keys.
    pub(crate) fn new(cap: usize, others: T) -> Self {
        Self { entries: RwLock::default(), cap, insertions: AtomicU64::new(0), fallback: Arc::new(others) }
    }

    /// The state of a key; created if absent.
    ///
    /// `stays` is called for entries without other references; referenced ones are never evicted.
    pub(crate) fn get_or_insert(&self, key: &str, make: impl FnOnce() -> T, stays: impl Fn(&T) -> Eviction) -> Arc<T> {
        if let Some(entry) = self.entries.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            let used = self.insertions.load(Relaxed) * 2 + 1;
            if entry.used.load(Relaxed) != used {
                entry.used.store(used, Relaxed);
            }
            return entry.state.clone();
        }
        if key.len() > MAX_KEY_LENGTH { self.fallback.clone() } else { self.insert(key, make, stays) }
    }

    #[cold]
    fn insert(&self, key: &str, make: impl FnOnce() -> T, stays: impl Fn(&T) -> Eviction) -> Arc<T> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(key) {
            return entry.state.clone();
        }
        if entries.len() >= self.cap {
            let goes = entries.iter().filter_map(|(key, entry)| {
                let stays = if Arc::strong_count(&entry.state) > 1 { Eviction::Pinned } else { stays(&entry.state) };
                (stays < Eviction::Pinned).then(|| ((stays, entry.used.load(Relaxed)), key))
            });
            let Some(goes) = goes.min().map(|(_, key)| key.clone()) else { return self.fallback.clone() };
            entries.remove(&goes);
        }
        let state = Arc::new(make());
        let used = AtomicU64::new((self.insertions.fetch_add(1, Relaxed) + 1) * 2);
        entries.insert(key.into(), Entry { state: state.clone(), used });
        state
    }

    /// The state of a key, if it has an entry.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<T>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).map(|entry| entry.state.clone())
    }

    /// All entries, in the order of their keys.
    pub(crate) fn snapshot<U>(&self, show: impl Fn(&T) -> U) -> Vec<(Box<str>, U)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = entries.iter().map(|(key, entry)| (key.clone(), show(&entry.state))).collect();
        list.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        list
    }

    /// The shared state of keys without an entry.
    pub(crate) fn fallback(&self) -> &T {
        &self.fallback
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[allow(clippy::trivially_copy_pass_by_ref)] // states are shown by reference
    fn evictable(_: &u32) -> Eviction {
        Eviction::Evictable
    }

    fn keys(map: &KeyedMap<u32>) -> Vec<Box<str>> {
        map.snapshot(|_| ()).into_iter().map(|(key, ())| key).collect()
    }

    #[test]
    fn a_key_keeps_its_state() {
        let map = KeyedMap::new(2, 0);
        assert_eq!(*map.get_or_insert("a", || 1, evictable), 1);
        assert_eq!(*map.get_or_insert("a", || 2, evictable), 1);
        assert_eq!((map.get("a").as_deref(), map.get("b")), (Some(&1), None));
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let map = KeyedMap::new(3, 0);
        for (number, key) in ["a", "b", "c", "a", "d", "b"].into_iter().enumerate() {
            map.get_or_insert(key, || u32::try_from(number).unwrap(), evictable);
        }
        // b went for d, and c for b
        assert_eq!(keys(&map), ["a".into(), "b".into(), "d".into()]);
        assert_eq!(map.get("b").as_deref(), Some(&5));
    }

    #[test]
    fn what_is_held_stays_and_where_all_are_held_the_rest_share_one() {
        let map = KeyedMap::new(2, 7);
        let held = (map.get_or_insert("a", || 1, evictable), map.get_or_insert("b", || 2, evictable));
        assert_eq!(*map.get_or_insert("c", || 3, evictable), 7);
        assert_eq!(*map.fallback(), 7);
        drop(held.0);
        assert_eq!(*map.get_or_insert("c", || 3, evictable), 3);
        assert_eq!(keys(&map), ["b".into(), "c".into()]);
    }

    #[test]
    fn what_wants_to_stay_long_goes_last() {
        let map = KeyedMap::new(3, 0);
        let odd_ones_stay = |state: &u32| if state % 2 == 1 { Eviction::Late } else { Eviction::Evictable };
        for (key, state) in [("a", 1), ("b", 2), ("c", 3), ("d", 5), ("e", 7)] {
            map.get_or_insert(key, || state, odd_ones_stay);
        }
        assert_eq!(keys(&map), ["c".into(), "d".into(), "e".into()]);
        let all_stay = |_: &u32| Eviction::Pinned;
        assert_eq!(*map.get_or_insert("f", || 9, all_stay), 0);
    }

    #[test]
    fn a_key_that_is_no_name_has_no_entry() {
        let map = KeyedMap::new(3, 0);
        assert_eq!(*map.get_or_insert(&"a".repeat(261), || 1, evictable), 0);
        assert_eq!(*map.get_or_insert(&"a".repeat(260), || 1, evictable), 1);
        assert_eq!(keys(&map).len(), 1);
    }

    proptest! {
        #[test]
        fn no_client_grows_it_and_a_held_entry_stays(
            cap in 0_usize..6,
            steps in prop::collection::vec((0_u8..12, any::<bool>()), 0..200),
        ) {
            let map = KeyedMap::new(cap, u32::MAX);
            let mut held: Vec<(String, Arc<u32>)> = Vec::new();
            for (number, (key, keep)) in steps.into_iter().enumerate() {
                let key = key.to_string();
                let state = map.get_or_insert(&key, || u32::try_from(number).unwrap(), evictable);
                for (other, theirs) in held.iter().filter(|(_, state)| **state != u32::MAX) {
                    let now = map.get(other);
                    prop_assert!(now.is_some_and(|now| Arc::ptr_eq(&now, theirs)), "{} was held", other);
                }
                if keep {
                    held.push((key, state));
                } else if !held.is_empty() {
                    held.swap_remove(number % held.len());
                }
                prop_assert!(keys(&map).len() <= cap);
            }
        }
    }
}
