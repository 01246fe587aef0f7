//! Requests for copies of the model, which inspection commands use.

use crate::model::NamespacedName;

/// The extent of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// Copy only this Service.
    pub only: Option<NamespacedName>,
    /// The maximum number of Service ports.
    pub max_ports: usize,
}

/// Why the model was not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    /// Services or EndpointSlices are not listed yet.
    Incomplete,
    /// The number of Service ports exceeds the maximum.
    TooMany(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::objects;
    use crate::track::{Change, Kind, Tracker, Translator};
    use netfilter::IpFamily;

    #[test]
    fn a_copy_contains_the_requested_services() {
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
        let extent = |only: Option<&str>, max_ports| CopyRequest {
            only: only.map(|name| NamespacedName::new("ns", name)),
            max_ports,
        };
        assert_eq!(tracker.copy(&extent(None, 2)).map(drop), Err(CopyError::Incomplete));
        [Kind::Service, Kind::EndpointSlice].into_iter().for_each(|kind| _ = tracker.apply(Change::Listed(kind)));
        assert_eq!(tracker.copy(&extent(None, 1)).map(drop), Err(CopyError::TooMany(2)));
        let rendered = |tracker: &Tracker| {
            let snapshot = tracker.snapshot(IpFamily::V4.localhost());
            let line = |(name, port)| format!("{name} {port:?} {:?}", snapshot.endpoints.of(name));
            snapshot.ports.iter().map(line).collect::<Vec<_>>()
        };
        let all = tracker.copy(&extent(None, 2)).expect("a copy");
        assert_eq!(rendered(&all), rendered(&tracker));
        let one = tracker.copy(&extent(Some("b"), 1)).expect("a copy");
        assert_eq!(rendered(&one), rendered(&tracker)[1..]);
    }
}
