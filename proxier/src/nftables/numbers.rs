//! Which endpoint has which number.
//!
//! In: the numbers that endpoints have, and the endpoints that are wanted. Out: numbers that change as few as can be.
//! Must not know: rules.

use std::collections::HashSet;
use std::net::SocketAddr;

/// Endpoints by number. With session affinity some numbers may be nobody's.
pub type Numbered = Box<[Option<SocketAddr>]>;

/// Numbers the endpoints of `wanted`, in which none is twice. Those that have a number keep it: with affinity all of
/// them, so that their clients find them; else those below the count, so that no number is nobody's.
#[must_use]
pub fn number(current: &[Option<SocketAddr>], wanted: &[SocketAddr], affinity: bool) -> Numbered {
    let set: HashSet<&SocketAddr> = wanted.iter().collect();
    let limit = if affinity { current.len() } else { wanted.len() };
    let mut kept = HashSet::with_capacity(wanted.len());
    let mut numbered: Vec<Option<SocketAddr>> = current
        .iter()
        .take(limit)
        .map(|endpoint| endpoint.filter(|endpoint| set.contains(endpoint) && kept.insert(*endpoint)))
        .collect();
    let mut new = wanted.iter().filter(|endpoint| !kept.contains(*endpoint));
    for nobodys in numbered.iter_mut().filter(|endpoint| endpoint.is_none()) {
        *nobodys = new.next().copied();
    }
    numbered.extend(new.map(|endpoint| Some(*endpoint)));
    while numbered.last().is_some_and(Option::is_none) {
        numbered.pop();
    }
    numbered.into_boxed_slice()
}

/// The endpoint of each number, in either.
#[must_use]
pub fn either([a, b]: &[Numbered; 2]) -> Numbered {
    let at = |numbered: &Numbered, number| numbered.get(number).copied().flatten();
    (0..a.len().max(b.len())).map(|number| at(a, number).or_else(|| at(b, number))).collect()
}

/// Of all numbers, those of these endpoints.
#[must_use]
pub fn only(all: &[Option<SocketAddr>], wanted: &[SocketAddr]) -> Numbered {
    let wanted: HashSet<&SocketAddr> = wanted.iter().collect();
    let mut some: Vec<_> = all.iter().map(|endpoint| endpoint.filter(|endpoint| wanted.contains(endpoint))).collect();
    while some.last().is_some_and(Option::is_none) {
        some.pop();
    }
    some.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 80))
    }

    fn list(numbers: &[u8]) -> Vec<SocketAddr> {
        numbers.iter().copied().map(endpoint).collect()
    }

    fn shown(numbered: &[Option<SocketAddr>]) -> String {
        let one =
            |endpoint: &Option<SocketAddr>| endpoint.map_or("-".to_owned(), |e| e.ip().to_string()[7..].to_owned());
        numbered.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn as_few_as_can_be_change() {
        let current = number(&[], &list(&[1, 2, 3, 4]), false);
        assert_eq!(shown(&current), "1 2 3 4");
        for (wanted, plain, sticky) in [
            (&[1, 2, 3, 4][..], "1 2 3 4", "1 2 3 4"),
            (&[1, 3, 4], "1 4 3", "1 - 3 4"),
            (&[1, 2, 3], "1 2 3", "1 2 3"),
            (&[1, 3, 4, 9], "1 9 3 4", "1 9 3 4"),
            (&[0, 1, 2, 3, 4], "1 2 3 4 0", "1 2 3 4 0"),
            (&[4], "4", "- - - 4"),
            (&[], "", ""),
        ] {
            assert_eq!(shown(&number(&current, &list(wanted), false)), plain, "{wanted:?}");
            assert_eq!(shown(&number(&current, &list(wanted), true)), sticky, "{wanted:?}");
        }
    }

    proptest! {
        #[test]
        fn each_has_one_number_and_keeps_it(
            current in prop::collection::vec(prop::option::of(0_u8..12), 0..12),
            wanted in prop::collection::btree_set(0_u8..12, 0..12),
            affinity: bool,
        ) {
            let current: Vec<_> = current.into_iter().map(|number| number.map(endpoint)).collect();
            let wanted = list(&wanted.into_iter().collect::<Vec<_>>());
            let numbered = number(&current, &wanted, affinity);
            let mut all: Vec<SocketAddr> = numbered.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(&all, &wanted);
            prop_assert!(affinity || numbered.len() == wanted.len());
            prop_assert!(!matches!(numbered.last(), Some(None)));
            for endpoint in &wanted {
                let Some(before) = current.iter().position(|e| e == &Some(*endpoint)) else { continue };
                if affinity || before < wanted.len() {
                    prop_assert_eq!(numbered[before], Some(*endpoint));
                }
            }
        }
    }
}
