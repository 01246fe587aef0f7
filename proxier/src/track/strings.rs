//! One copy of each string that many objects contain: namespaces, Service names, port names.

use std::collections::HashSet;
use std::sync::Arc;

/// From this many strings on, unused ones are looked for whenever their number has doubled.
const FEW: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct StringInterner {
    known: HashSet<Arc<str>>,
    /// How many were in use when that was last counted.
    used: usize,
}

impl StringInterner {
    /// Replaces a string by the known copy of it.
    pub fn share(&mut self, string: &mut Arc<str>) {
        if let Some(known) = self.known.get(string) {
            string.clone_from(known);
            return;
        }
        if self.known.len() >= (2 * self.used).max(FEW) {
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
        for number in 0..10 * FEW {
            strings.share(&mut number.to_string().into());
        }
        assert!(strings.known.len() <= FEW && strings.known.contains("ns"));
    }
}
