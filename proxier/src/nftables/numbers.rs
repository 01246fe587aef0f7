//! Numbers of endpoints: stable, so that a change of endpoints changes few map elements.

use std::collections::HashSet;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// Endpoints by number. With session affinity, some numbers may be unused.
///
/// The model keeps one for each endpoint of the cluster; an IPv4 one takes 8 bytes, a `SocketAddr` would take 32.
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
    /// One more than the highest number.
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

/// Collects endpoints of one family; those of the other and unused numbers at the end are dropped.
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

/// Numbers the distinct endpoints of `desired`.
///
/// Endpoints keep their current number: with affinity all of them, so that their clients find them; else those below
/// the count, so that no number is unused.
#[must_use]
pub fn number(current: &NumberedEndpoints, desired: &[SocketAddr], affinity: bool) -> NumberedEndpoints {
    if current.is_empty() {
        return desired.iter().copied().map(Some).collect();
    }
    let set: HashSet<&SocketAddr> = desired.iter().collect();
    let limit = if affinity { current.len() } else { desired.len() };
    let mut kept = HashSet::with_capacity(desired.len());
    let mut numbered: Vec<Option<SocketAddr>> = current
        .iter()
        .take(limit)
        .map(|endpoint| endpoint.filter(|endpoint| set.contains(endpoint) && kept.insert(*endpoint)))
        .collect();
    let mut new = desired.iter().filter(|endpoint| !kept.contains(*endpoint));
    for unused in numbered.iter_mut().filter(|endpoint| endpoint.is_none()) {
        *unused = new.next().copied();
    }
    numbered.into_iter().chain(new.map(|endpoint| Some(*endpoint))).collect()
}

/// Merges two numberings; the first wins.
#[must_use]
pub fn either([a, b]: &[NumberedEndpoints; 2]) -> NumberedEndpoints {
    (0..a.len().max(b.len())).map(|number| a.get(number).or_else(|| b.get(number))).collect()
}

/// Restricts a numbering to these endpoints.
#[must_use]
pub fn only(all: &NumberedEndpoints, desired: &[SocketAddr]) -> NumberedEndpoints {
    let desired: HashSet<&SocketAddr> = desired.iter().collect();
    all.iter().map(|endpoint| endpoint.filter(|endpoint| desired.contains(endpoint))).collect()
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
    fn endpoints_when_others_come_or_go_keep_their_numbers() {
        let current = number(&NumberedEndpoints::default(), &list(&[1, 2, 3, 4]), false);
        assert_eq!(shown(&current), "1 2 3 4");
        for (desired, plain, sticky) in [
            (&[1, 2, 3, 4][..], "1 2 3 4", "1 2 3 4"),
            (&[1, 3, 4], "1 4 3", "1 - 3 4"),
            (&[1, 2, 3], "1 2 3", "1 2 3"),
            (&[1, 3, 4, 9], "1 9 3 4", "1 9 3 4"),
            (&[0, 1, 2, 3, 4], "1 2 3 4 0", "1 2 3 4 0"),
            (&[4], "4", "- - - 4"),
            (&[], "", ""),
        ] {
            assert_eq!(shown(&number(&current, &list(desired), false)), plain, "{desired:?}");
            assert_eq!(shown(&number(&current, &list(desired), true)), sticky, "{desired:?}");
        }
    }

    proptest! {
        #[test]
        fn each_has_one_number_and_keeps_it(
            current in prop::collection::vec(prop::option::of(0_u8..12), 0..12),
            desired in prop::collection::btree_set(0_u8..12, 0..12),
            affinity: bool,
        ) {
            let current: NumberedEndpoints = current.into_iter().map(|number| number.map(endpoint)).collect();
            let desired = list(&desired.into_iter().collect::<Vec<_>>());
            let numbered = number(&current, &desired, affinity);
            let mut all: Vec<SocketAddr> = numbered.iter().flatten().collect();
            all.sort_unstable();
            prop_assert_eq!(&all, &desired);
            prop_assert!(affinity || numbered.len() == desired.len());
            prop_assert!(numbered.is_empty() || numbered.get(numbered.len() - 1).is_some());
            for endpoint in &desired {
                let Some(before) = current.iter().position(|e| e == Some(*endpoint)) else { continue };
                if affinity || before < desired.len() {
                    prop_assert_eq!(numbered.get(before), Some(*endpoint));
                }
            }
        }
    }
}
