//! Which endpoint has which number.
//!
//! In: the numbers that endpoints have, and the endpoints that are wanted. Out: numbers that change as few as can be.
//! Must not know: rules.

use std::collections::HashSet;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// Endpoints by number. With session affinity some numbers may be nobody's.
///
/// One is kept for each endpoint of the cluster; an IPv4 one takes 8 bytes, a `SocketAddr` would take 32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NumberedEndpoints {
    /// Of an IPv4 Service port.
    V4(Box<[Option<SocketAddrV4>]>),
    /// Of an IPv6 one.
    V6(Box<[Option<SocketAddrV6>]>),
}

impl Default for NumberedEndpoints {
    fn default() -> Self {
        Self::V4(Box::default())
    }
}

impl NumberedEndpoints {
    /// One more than the greatest number.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::V4(all) => all.len(),
            Self::V6(all) => all.len(),
        }
    }

    /// Whether there is no endpoint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoint with this number.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<SocketAddr> {
        match self {
            Self::V4(all) => all.get(number).copied().flatten().map(SocketAddr::V4),
            Self::V6(all) => all.get(number).copied().flatten().map(SocketAddr::V6),
        }
    }

    /// All numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = Option<SocketAddr>> {
        (0..self.len()).map(|number| self.get(number))
    }
}

/// All endpoints are of one family: those of the other are left out. Numbers at the end without an endpoint are left out too.
impl FromIterator<Option<SocketAddr>> for NumberedEndpoints {
    fn from_iter<I: IntoIterator<Item = Option<SocketAddr>>>(endpoints: I) -> Self {
        let mut all: Vec<Option<SocketAddr>> = endpoints.into_iter().collect();
        while all.last().is_some_and(Option::is_none) {
            all.pop();
        }
        let v4 = |endpoint: SocketAddr| if let SocketAddr::V4(endpoint) = endpoint { Some(endpoint) } else { None };
        let v6 = |endpoint: SocketAddr| if let SocketAddr::V6(endpoint) = endpoint { Some(endpoint) } else { None };
        match all.last() {
            Some(Some(SocketAddr::V6(_))) => Self::V6(all.into_iter().map(|endpoint| endpoint.and_then(v6)).collect()),
            _ => Self::V4(all.into_iter().map(|endpoint| endpoint.and_then(v4)).collect()),
        }
    }
}

/// Numbers the endpoints of `wanted`, in which none is twice. Those that have a number keep it: with affinity all of
/// them, so that their clients find them; else those below the count, so that no number is nobody's.
#[must_use]
pub fn number(current: &NumberedEndpoints, wanted: &[SocketAddr], affinity: bool) -> NumberedEndpoints {
    if current.is_empty() {
        return wanted.iter().copied().map(Some).collect();
    }
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
    numbered.into_iter().chain(new.map(|endpoint| Some(*endpoint))).collect()
}

/// The endpoint of each number, in either.
#[must_use]
pub fn either([a, b]: &[NumberedEndpoints; 2]) -> NumberedEndpoints {
    (0..a.len().max(b.len())).map(|number| a.get(number).or_else(|| b.get(number))).collect()
}

/// Of all numbers, those of these endpoints.
#[must_use]
pub fn only(all: &NumberedEndpoints, wanted: &[SocketAddr]) -> NumberedEndpoints {
    let wanted: HashSet<&SocketAddr> = wanted.iter().collect();
    all.iter().map(|endpoint| endpoint.filter(|endpoint| wanted.contains(endpoint))).collect()
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

    fn shown(numbered: &NumberedEndpoints) -> String {
        let one =
            |endpoint: Option<SocketAddr>| endpoint.map_or("-".to_owned(), |e| e.ip().to_string()[7..].to_owned());
        numbered.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn as_few_as_can_be_change() {
        let current = number(&NumberedEndpoints::default(), &list(&[1, 2, 3, 4]), false);
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
            let current: NumberedEndpoints = current.into_iter().map(|number| number.map(endpoint)).collect();
            let wanted = list(&wanted.into_iter().collect::<Vec<_>>());
            let numbered = number(&current, &wanted, affinity);
            let mut all: Vec<SocketAddr> = numbered.iter().flatten().collect();
            all.sort_unstable();
            prop_assert_eq!(&all, &wanted);
            prop_assert!(affinity || numbered.len() == wanted.len());
            prop_assert!(numbered.is_empty() || numbered.get(numbered.len() - 1).is_some());
            for endpoint in &wanted {
                let Some(before) = current.iter().position(|e| e == Some(*endpoint)) else { continue };
                if affinity || before < wanted.len() {
                    prop_assert_eq!(numbered.get(before), Some(*endpoint));
                }
            }
        }
    }
}
