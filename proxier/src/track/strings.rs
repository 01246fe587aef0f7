//! Interns strings that many objects contain: namespaces, Service names, port names.

use std::collections::HashSet;
use std::sync::Arc;

/// The number of strings from which unused ones are dropped whenever it has doubled.
const MIN_LIMIT: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct StringInterner {
    known: HashSet<Arc<str>>,
    /// The number of used strings at the last count.
    used: usize,
}

impl StringInterner {
    /// Replaces a string by the interned copy.
    pub fn share(&mut self, string: &mut Arc<str>) {
        if let Some(known) = self.known.get(string) {
            string.clone_from(known);
            return;
        }
        if self.known.len() >= (2 * self.used).max(MIN_LIMIT) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.used = self.known.len();
        }
        self.known.insert(string.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_become_one_and_unused_ones_are_dropped() {
        let mut strings = StringInterner::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("ns".into(), "ns".into());
        strings.share(&mut a);
        strings.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for number in 0..10 * MIN_LIMIT {
            strings.share(&mut number.to_string().into());
        }
        assert!(strings.known.len() <= MIN_LIMIT && strings.known.contains("ns"));
    }
}
