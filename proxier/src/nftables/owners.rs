//! Ownership of destinations that several Service ports claim: the first by name owns it.

use std::collections::HashMap;

use crate::model::{Destination, Protocol, ServicePortName};

type Claim = (Protocol, Destination);

/// The claimed destinations, each with its claimants sorted by name.
#[derive(Debug, Default)]
pub struct AddressOwners(HashMap<Claim, Vec<ServicePortName>>);

impl AddressOwners {
    /// Whether a Service port owns a destination.
    #[must_use]
    pub fn owns(&self, name: &ServicePortName, destination: Destination) -> bool {
        self.0.get(&(name.protocol, destination)).is_some_and(|claimants| claimants.first() == Some(name))
    }

    /// Replaces the destinations that a Service port claims.
    ///
    /// Calls `others` for each Service port that thereby loses or gains a destination.
    pub fn replace(
        &mut self,
        name: &ServicePortName,
        old: &[Destination],
        new: &[Destination],
        mut others: impl FnMut(&ServicePortName),
    ) {
        for destination in old.iter().filter(|destination| !new.contains(destination)) {
            let claim = (name.protocol, *destination);
            let Some(claimants) = self.0.get_mut(&claim) else { continue };
            let was_first = claimants.first() == Some(name);
            claimants.retain(|claimant| claimant != name);
            match claimants.first() {
                Some(next) if was_first => others(next),
                Some(_) => {}
                None => _ = self.0.remove(&claim),
            }
        }
        for destination in new {
            let claimants = self.0.entry((name.protocol, *destination)).or_insert_with(|| Vec::with_capacity(1));
            if let Err(at) = claimants.binary_search(name) {
                if at == 0 {
                    claimants.first().into_iter().for_each(&mut others);
                }
                claimants.insert(at, name.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NamespacedName;

    #[test]
    fn the_first_claimant_by_name_owns_a_destination_and_then_the_next() {
        let name = |text| ServicePortName {
            protocol: Protocol::Tcp,
            ..ServicePortName::first_of(&NamespacedName::new("ns", text))
        };
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let port = Destination::NodePort;
        let mut owners = AddressOwners::default();
        let mut replace = |claimant: &ServicePortName, old: &[u16], new: &[u16]| {
            let mut affected = Vec::new();
            let destinations = |ports: &[u16]| ports.iter().copied().map(port).collect::<Vec<_>>();
            owners.replace(claimant, &destinations(old), &destinations(new), |other| affected.push(other.clone()));
            (affected, [&a, &b, &c].map(|name| owners.owns(name, port(1))))
        };
        assert_eq!(replace(&b, &[], &[1, 2]), (vec![], [false, true, false]));
        assert_eq!(replace(&c, &[], &[1]), (vec![], [false, true, false]));
        assert_eq!(replace(&a, &[], &[1]), (vec![b.clone()], [true, false, false]));
        assert_eq!(replace(&b, &[1, 2], &[2]), (vec![], [true, false, false]));
        assert_eq!(replace(&a, &[1], &[]), (vec![c.clone()], [false, false, true]));
        assert_eq!(replace(&c, &[1], &[]), (vec![], [false, false, false]));
    }
}
