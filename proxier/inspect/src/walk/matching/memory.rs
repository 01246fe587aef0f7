//! What the kernel remembers of packets before: lists of `recent`, and sets.

use netfilter::ipset::SetQuery;

use super::super::chains::{Place, Traveller};
use super::{Holds, SoFar};
use crate::rules::{Recent, RecentAction};

/// What rules did to a list on the packet's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Touched {
    /// What was there before is gone.
    removed: bool,
    /// How often the packet itself was seen.
    hits: u32,
    /// A rule that may match changes the list.
    unsure: bool,
}

/// Whether the list has the packet's address; the list is changed as the kernel does, if the rule comes so far.
pub(super) fn recent(recent: &Recent, traveller: &mut Traveller, place: &Place<'_>, so_far: SoFar) -> Holds {
    let key = (recent.list.clone(), recent.of_sender);
    let touched = traveller.touched.get(&key).copied().unwrap_or_default();
    let found = match recent.action {
        RecentAction::Set => Holds::Yes(1.0),
        _ => listed(recent, touched, traveller, place),
    };
    let changed = match recent.action {
        RecentAction::Check => return found,
        RecentAction::Remove => Touched { removed: true, hits: 0, unsure: false },
        RecentAction::Set | RecentAction::Update => Touched { hits: touched.hits + 1, ..touched },
    };
    match (so_far, &found) {
        (SoFar::Holds, Holds::Yes(_)) => {
            if recent.action != RecentAction::Remove {
                traveller.remembered.insert(recent.list.clone());
            }
            traveller.touched.insert(key, changed);
        }
        (SoFar::Holds | SoFar::Unknown, Holds::Unknown(_)) | (SoFar::Unknown, Holds::Yes(_)) => {
            traveller.touched.insert(key, Touched { unsure: true, ..touched });
        }
        _ => {}
    }
    found
}

/// Whether the list has the packet's address, as the kernel held it and as rules changed it on the way.
fn listed(recent: &Recent, touched: Touched, traveller: &mut Traveller, place: &Place<'_>) -> Holds {
    // To be removed it has to be there, however often.
    let hits = if recent.action == RecentAction::Remove { 1 } else { recent.hits.max(1) };
    if touched.unsure {
        return Holds::Unknown(format!("a rule before that may match changes list {}", recent.list));
    }
    if touched.hits >= hits {
        return Holds::Yes(1.0);
    }
    if touched.removed {
        return Holds::No;
    }
    if !recent.of_sender {
        return Holds::Unknown(format!("list {} is of destinations or networks, which is not read", recent.list));
    }
    traveller.asked.insert(recent.list.clone());
    let Some(age) = place.memory.get(&recent.list) else { return Holds::No };
    if recent.action != RecentAction::Remove && recent.seconds.is_some_and(|seconds| *age > seconds) {
        return Holds::No;
    }
    if hits > touched.hits + 1 {
        return Holds::Unknown(format!("how often list {} saw the sender is not read", recent.list));
    }
    Holds::Yes(1.0)
}

/// Whether a set has the packet.
pub(super) fn in_set(
    name: &str,
    of_source: &[bool],
    return_nomatch: bool,
    traveller: &mut Traveller,
    place: &Place<'_>,
) -> Holds {
    if traveller.changed_sets.contains(name) {
        return Holds::Unknown(format!("a rule before changes set {name}"));
    }
    if return_nomatch {
        return Holds::Unknown(format!("elements of set {name} that do not match are not told apart"));
    }
    let packet = &traveller.packet;
    if let Some(set) = place.node.held.sets.get(name) {
        return set.has([packet.source, packet.destination], packet.protocol.number(), of_source).into();
    }
    let query = SetQuery {
        set: name.to_owned(),
        of_source: of_source.to_vec(),
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol.number(),
        in_interface: place.in_interface.to_owned(),
        out_interface: place.out_interface(packet.destination.ip()).unwrap_or_default().to_owned(),
        mark: traveller.mark,
    };
    match place.node.answers.get(&query) {
        Some(Ok(has)) => (*has).into(),
        Some(Err(why)) => Holds::Unknown(why.clone()),
        None => {
            traveller.queries.insert(query);
            Holds::Unknown(format!("set {name} was not read"))
        }
    }
}
