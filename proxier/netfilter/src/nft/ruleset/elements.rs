//! Elements of sets and maps as the kernel holds them.
//!
//! In: elements as they come from the kernel, in any order, some twice; keys. Out: the element that a key is in, or that
//! it is not known. Must not know: their text.

use super::set::KeyField;
use crate::Counters;
use crate::nft::{Bytes, Name, Value};

/// An element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The key, or the least of a range; empty for the one that has all other keys (`*`).
    pub key: Bytes,
    /// The greatest of a range.
    pub end: Option<Bytes>,
    /// What a map has for it.
    pub value: Option<Value>,
    /// `comment`
    pub comment: Option<Name>,
    /// `timeout`, in milliseconds; 0 where the set's own holds, or none.
    pub timeout: u64,
    /// How many of them are left; 0 where it does not expire.
    pub expires: u64,
    /// What it counted, if it has a counter.
    pub counters: Option<Box<Counters>>,
}

impl Element {
    /// A member of a set.
    #[must_use]
    pub fn member(key: Bytes) -> Self {
        Self { key, end: None, value: None, comment: None, timeout: 0, expires: 0, counters: None }
    }

    /// Whether a key is in it. With `fields`, each field of a range counts for itself.
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

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementLookup<'a> {
    /// It is in this element.
    Present(&'a Element),
    /// It is in none.
    Absent,
    /// Nobody has asked the kernel for it.
    Unread,
}

/// The elements of one set, in the order of their keys.
#[derive(Clone, Debug, Default)]
pub struct Elements {
    list: Vec<Element>,
    /// Keys that are in none.
    absent: Vec<Bytes>,
    complete: bool,
}

impl Elements {
    /// All elements. Those that come twice are there once.
    #[must_use]
    pub fn complete(mut list: Vec<Element>) -> Self {
        list.sort_unstable_by(|a, b| (&a.key, &a.end).cmp(&(&b.key, &b.end)));
        list.dedup_by(|a, b| a.key == b.key && a.end == b.end);
        list.shrink_to_fit();
        Self { list, absent: Vec::new(), complete: true }
    }

    /// All elements of a set with ranges of single fields: the kernel holds where each begins, and where none is (`true`).
    #[must_use]
    pub fn intervals(bounds: Vec<(Element, bool)>) -> Self {
        let (rest, mut bounds): (Vec<_>, Vec<_>) = bounds.into_iter().partition(|(bound, _)| bound.key.is_empty());
        // Where one ends and the next begins it begins.
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

    /// Whether all were read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Notes what the kernel said of one key: the element that has it, or the one that has all other keys.
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

    /// Those that are known.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Element> {
        self.list.iter()
    }

    /// Those that are known, at least: their number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The element of a key. `ranges`: the fields, where each may have a range of its own.
    pub(super) fn find(&self, key: &[u8], ranges: Option<&[KeyField]>) -> ElementLookup<'_> {
        let from = self.list.partition_point(|element| *element.key <= *key);
        // Ranges of single fields do not overlap, so the last that begins before the key is the only one that may have it.
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

/// The last key before this one; `None` for the first of all.
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
    fn ranges_are_where_they_begin_until_they_end() {
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
    fn each_field_of_a_range_counts_for_itself() {
        let fields = [KeyField { kind: 13, width: 2 }, KeyField { kind: 12, width: 1 }];
        let range = Element { end: Some([0, 9, 0, 0, 5, 0, 0, 0].into()), ..member(&[0, 1, 0, 0, 3, 0, 0, 0]) };
        let elements = Elements::complete(vec![range.clone(), range]);
        assert_eq!(elements.len(), 1);
        let found = |port, protocol| elements.find(&[0, port, 0, 0, protocol, 0, 0, 0], Some(&fields));
        assert_eq!([found(4, 4), found(4, 6), found(0, 4)].map(|found| key(&found).is_some()), [true, false, false]);
    }

    #[test]
    fn what_was_not_asked_is_not_known() {
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
