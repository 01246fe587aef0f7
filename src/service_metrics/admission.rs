//! Limits the number of totals that are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// A total of what the kernel has counted.
pub trait Total {
    /// A total of nothing at that time.
    fn new(now: Instant) -> Self;

    /// When the kernel had it last.
    fn seen(&self) -> Instant;
}

/// Admits new values up to the limit, in order; values that are gone from the kernel make room, the oldest first. Returns
/// how many are left out.
pub fn admit<K: Ord + Clone, T: Total>(
    totals: &mut BTreeMap<K, T>,
    present: &BTreeSet<&K>,
    limit: usize,
    now: Instant,
) -> usize {
    let new: Vec<&K> = present.iter().copied().filter(|key| !totals.contains_key(*key)).collect();
    let excess = (totals.len() + new.len()).saturating_sub(limit);
    if excess > 0 {
        let gone = totals.iter().filter(|(key, _)| !present.contains(key));
        let mut gone: Vec<(Instant, K)> = gone.map(|(key, total)| (total.seen(), key.clone())).collect();
        gone.sort_unstable();
        gone.iter().take(excess).for_each(|(_, key)| _ = totals.remove(key));
    }
    let room = limit.saturating_sub(totals.len());
    totals.extend(new.iter().take(room).map(|key| ((*key).clone(), T::new(now))));
    new.len().saturating_sub(room)
}
