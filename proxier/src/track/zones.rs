//! Interns zone hints, which many endpoints share.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::endpoint::ZoneHints;

/// The number of distinct hints from which unused ones are dropped.
const INITIAL_LIMIT: usize = 64;

/// The distinct zone hints in use.
///
/// Unused ones are dropped whenever the number has doubled: constant amortized time, and at most twice as many as were
/// in use.
#[derive(Debug)]
pub(super) struct ZoneHintInterner {
    known: HashSet<ZoneHints>,
    limit: usize,
}

impl Default for ZoneHintInterner {
    fn default() -> Self {
        Self { known: HashSet::new(), limit: INITIAL_LIMIT }
    }
}

impl ZoneHintInterner {
    /// The interned value that equals `zones`.
    pub(super) fn share(&mut self, zones: &[Box<str>]) -> ZoneHints {
        if let Some(known) = self.known.get(zones) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|hints| Arc::strong_count(hints) > 1);
            self.limit = INITIAL_LIMIT.max(2 * self.known.len());
            self.known.shrink_to(self.limit);
        }
        let hints = ZoneHints::from(zones);
        self.known.insert(hints.clone());
        hints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(number: usize) -> [Box<str>; 1] {
        [format!("zone-{number}").into()]
    }

    #[test]
    fn equal_hints_are_shared_and_unused_ones_do_not_pile_up() {
        let mut shared = ZoneHintInterner::default();
        let used: Vec<ZoneHints> = (0..10).map(|number| shared.share(&hints(number))).collect();
        for number in 10..10_000 {
            drop(shared.share(&hints(number)));
            assert!(shared.known.len() <= INITIAL_LIMIT, "{} after {number}", shared.known.len());
        }
        for (number, used) in used.iter().enumerate() {
            assert!(Arc::ptr_eq(used, &shared.share(&hints(number))), "zone-{number} is in use");
        }
    }
}
