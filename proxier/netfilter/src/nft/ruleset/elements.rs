//! The elements of a set as read from the kernel, in whole or in part.

use super::set::KeyField;
use crate::Counters;
use crate::nft::{Bytes, Name, Value};

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The key, or the first key of an interval; empty for the catch-all element (`*`).
    pub key: Bytes,
    /// The last key of an interval.
    pub end: Option<Bytes>,
    /// The value of a map element.
    pub value: Option<Value>,
    /// `comment`
    pub comment: Option<Name>,
    /// `timeout` in milliseconds; 0 for the set's default or none.
    pub timeout: u64,
    /// The remaining lifetime in milliseconds; 0 if it does not expire.
    pub expires: u64,
    /// The counters, if it has any.
    pub counters: Option<Box<Counters>>,
}

impl Element {
    /// An element without value.
    #[must_use]
    pub fn member(key: Bytes) -> Self {
        Self { key, end: None, value: None, comment: None, timeout: 0, expires: 0, counters: None }
    }

    /// Whether the element contains a key. With `fields`, each field is an interval of its own.
    fn has(&self, key: &[u8], fields: Option<&[KeyField]>) -> bool {
        let Some(end) = &self.end else { return *self.key == *key };
        let within = |least: &[u8], found: &[u8], most: &[u8]| least <= found && found <= most;
        let Some(fields) = fields else { return within(&self.key, key, end) };
        let mut at = 0;
        fields.iter().all(|part| {
            let range = at..at + part.width;
            at += part.padded();
            let parts = (self.key.get(range.clone()), key.get(range.clone()), end.get(range));
            matches!(parts, (Some(least), Some(found), Some(most)) if within(least, found, most))
        })
    }
}

/// The result of a key lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementLookup<'a> {
    /// The element that contains the key.
    Present(&'a Element),
    /// No element contains the key.
    Absent,
    /// The key was not read from the kernel.
    Unread,
}

/// The known elements of a set, sorted by key.
#[derive(Clone, Debug, Default)]
pub struct Elements {
    list: Vec<Element>,
    /// Keys that no element contains.
    absent: Vec<Bytes>,
    complete: bool,
}

impl Elements {
    /// All elements of a set, without duplicates.
    #[must_use]
    pub fn complete(mut list: Vec<Element>) -> Self {
        list.sort_unstable_by(|a, b| (&a.key, &a.end).cmp(&(&b.key, &b.end)));
        list.dedup_by(|a, b| a.key == b.key && a.end == b.end);
        list.shrink_to_fit();
        Self { list, absent: Vec::new(), complete: true }
    }

    /// All elements of an interval set with single-field keys.
    ///
    /// The kernel lists the start of each interval and of each gap (`true`).
    #[must_use]
    pub fn intervals(bounds: Vec<(Element, bool)>) -> Self {
        let (rest, mut bounds): (Vec<_>, Vec<_>) = bounds.into_iter().partition(|(bound, _)| bound.key.is_empty());
        // An interval that starts where another ends takes precedence over the end.
        bounds.sort_by(|a, b| (&a.0.key, a.1).cmp(&(&b.0.key, b.1)));
        bounds.dedup_by(|a, b| a.0.key == b.0.key);
        let ends: Vec<Option<Bytes>> = bounds.iter().skip(1).map(|(next, _)| before(&next.key)).chain([None]).collect();
        let begun = bounds.into_iter().zip(ends).filter(|((_, nothing), _)| !nothing);
        let ranges = begun.map(|((element, _), end)| {
            let end = end.unwrap_or_else(|| vec![u8::MAX; element.key.len()].into());
            Element { end: Some(end).filter(|end| *end != element.key), ..element }
        });
        Self::complete(ranges.chain(rest.into_iter().map(|(element, _)| element)).collect())
    }

    /// Whether all elements were read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Records the result of looking up one key: an element, the catch-all element, or none.
    pub fn record(&mut self, key: &[u8], found: Option<Element>) {
        if found.as_ref().is_some_and(|element| element.key.is_empty()) {
            self.record(key, None);
        }
        match found {
            Some(element) => {
                if let Err(at) = self.list.binary_search_by(|e| (&e.key, &e.end).cmp(&(&element.key, &element.end))) {
                    self.list.insert(at, element);
                }
            }
            None => {
                if let Err(at) = self.absent.binary_search_by(|known| (**known).cmp(key)) {
                    self.absent.insert(at, key.into());
                }
            }
        }
    }

    /// The known elements.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Element> {
        self.list.iter()
    }

    /// The number of known elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether no element is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Looks up a key. `ranges` are the fields, where each field may be an interval.
    pub(super) fn find(&self, key: &[u8], ranges: Option<&[KeyField]>) -> ElementLookup<'_> {
        let from = self.list.partition_point(|element| *element.key <= *key);
        // Intervals of single fields do not overlap: only the last one that starts at or before the key can contain
        // it.
        let found = match ranges {
            None => self.list[..from].last().filter(|element| element.has(key, None)),
            Some(_) => self.list[..from].iter().find(|element| element.has(key, ranges)),
        };
        let rest = || self.list.first().filter(|element| element.key.is_empty());
        let absent = || self.absent.binary_search_by(|known| (**known).cmp(key)).is_ok();
        match found {
            Some(element) => ElementLookup::Present(element),
            None if self.complete || absent() => rest().map_or(ElementLookup::Absent, ElementLookup::Present),
            None => ElementLookup::Unread,
        }
    }
}

/// The key before this one; `None` for the first key.
fn before(key: &[u8]) -> Option<Bytes> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            return Some(key.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(key: &[u8]) -> Element {
        Element::member(key.into())
    }

    fn key<'a>(found: &ElementLookup<'a>) -> Option<&'a [u8]> {
        match found {
            ElementLookup::Present(element) => Some(&element.key),
            ElementLookup::Absent | ElementLookup::Unread => None,
        }
    }

    #[test]
    fn intervals_contain_keys_from_their_start_to_the_next_gap() {
        let bounds = [(&[20], true), (&[10], false), (&[20], false), (&[0], true), (&[21], true), (&[250], false)];
        let elements = Elements::intervals(bounds.map(|(key, end)| (member(key), end)).to_vec());
        let ends: Vec<(u8, Option<u8>)> =
            elements.iter().map(|e| (e.key[0], e.end.as_ref().map(|end| end[0]))).collect();
        assert_eq!(ends, [(10, Some(19)), (20, None), (250, Some(255))]);
        for (asked, found) in
            [(0, None), (9, None), (10, Some(10)), (19, Some(10)), (20, Some(20)), (21, None), (255, Some(250))]
        {
            assert_eq!(key(&elements.find(&[asked], None)), found.map(|key: u8| vec![key]).as_deref(), "{asked}");
        }
    }

    #[test]
    fn concatenated_interval_matches_each_field_separately() {
        let fields = [KeyField { kind: 13, width: 2 }, KeyField { kind: 12, width: 1 }];
        let range = Element { end: Some([0, 9, 0, 0, 5, 0, 0, 0].into()), ..member(&[0, 1, 0, 0, 3, 0, 0, 0]) };
        let elements = Elements::complete(vec![range.clone(), range]);
        assert_eq!(elements.len(), 1);
        let found = |port, protocol| elements.find(&[0, port, 0, 0, protocol, 0, 0, 0], Some(&fields));
        assert_eq!([found(4, 4), found(4, 6), found(0, 4)].map(|found| key(&found).is_some()), [true, false, false]);
    }

    #[test]
    fn keys_that_were_not_read_are_unread() {
        let mut elements = Elements::default();
        assert_eq!(elements.find(&[1], None), ElementLookup::Unread);
        elements.record(&[1], None);
        elements.record(&[2], Some(member(&[2])));
        assert_eq!(elements.find(&[1], None), ElementLookup::Absent);
        assert_eq!(key(&elements.find(&[2], None)), Some(&[2][..]));
        elements.record(&[4], Some(member(&[])));
        assert_eq!([4, 1].map(|asked| key(&elements.find(&[asked], None)).map(<[u8]>::len)), [Some(0), Some(0)]);
        assert_eq!(elements.find(&[9], None), ElementLookup::Unread);
        let all = Elements::complete(vec![member(&[]), member(&[2])]);
        assert_eq!((key(&all.find(&[3], None)), key(&all.find(&[2], None))), (Some(&[][..]), Some(&[2][..])));
    }
}
