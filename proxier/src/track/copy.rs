//! Copies of what is known, for who looks at a proxy at work: how much is wanted, and why there is none.
//!
//! In: nothing. Out: values for [`Tracker::copy`](super::Tracker::copy). Must not know: what copies are for.

use crate::model::NamespacedName;

/// How much is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// Of the Services only this one.
    pub only: Option<NamespacedName>,
    /// More Service ports than these are too many.
    pub most: usize,
}

/// Why there is no copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    /// Not everything was listed yet.
    Incomplete,
    /// There are so many Service ports.
    TooMany(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::objects;
    use crate::track::{Change, Kind, Tracker, Translator};
    use netfilter::IpFamily;

    #[test]
    fn a_copy_knows_as_much_as_is_asked_for() {
        let (mut tracker, mut translator) = (Tracker::default(), Translator::new(objects::NODE, false));
        for (name, number) in [("a", 1), ("b", 2)] {
            let service = objects::service("ns", name, objects::address(number));
            let slice = objects::slice("ns", name, &format!("{name}-1"), &[objects::address(100 + number)]);
            for (kind, object) in [(Kind::Service, service), (Kind::EndpointSlice, slice)] {
                for (family, change) in translator.applied(objects::decoded(kind, object)).expect("an object").changes {
                    if family == IpFamily::V4 {
                        tracker.apply(change);
                    }
                }
            }
        }
        let extent =
            |only: Option<&str>, most| CopyRequest { only: only.map(|name| NamespacedName::new("ns", name)), most };
        assert_eq!(tracker.copy(&extent(None, 2)).map(drop), Err(CopyError::Incomplete));
        [Kind::Service, Kind::EndpointSlice].into_iter().for_each(|kind| _ = tracker.apply(Change::Listed(kind)));
        assert_eq!(tracker.copy(&extent(None, 1)).map(drop), Err(CopyError::TooMany(2)));
        let told = |tracker: &Tracker| {
            let snapshot = tracker.snapshot(IpFamily::V4.localhost());
            let line = |(name, port)| format!("{name} {port:?} {:?}", snapshot.endpoints.of(name));
            snapshot.ports.iter().map(line).collect::<Vec<_>>()
        };
        let all = tracker.copy(&extent(None, 2)).expect("a copy");
        assert_eq!(told(&all), told(&tracker));
        let one = tracker.copy(&extent(Some("b"), 1)).expect("a copy");
        assert_eq!(told(&one), told(&tracker)[1..]);
    }
}
