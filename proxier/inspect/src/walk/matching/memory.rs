//! Evaluates matches on `recent` lists and sets.

use netfilter::ipset::SetQuery;

use super::super::chains::{HookContext, TracedPacket};
use super::{MatchResult, PriorConditions};
use crate::rules::{RecentAction, RecentMatch};

/// Changes by rules to a `recent` list during the walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct ListChange {
    /// Earlier entries were removed.
    removed: bool,
    /// How often the packet itself was seen.
    hits: u32,
    /// A rule that may match changes the list.
    unsure: bool,
}

/// Whether the list has the packet's address. If the preceding conditions hold, changes the list as the kernel does.
pub(super) fn recent(
    recent: &RecentMatch,
    traced: &mut TracedPacket,
    context: &HookContext<'_>,
    prior: PriorConditions,
) -> MatchResult {
    let key = (recent.list.clone(), recent.of_sender);
    let touched = traced.touched.get(&key).copied().unwrap_or_default();
    let found = match recent.action {
        RecentAction::Set => MatchResult::Yes(1.0),
        _ => listed(recent, touched, traced, context),
    };
    let changed = match recent.action {
        RecentAction::Check => return found,
        RecentAction::Remove => ListChange { removed: true, hits: 0, unsure: false },
        RecentAction::Set | RecentAction::Update => ListChange { hits: touched.hits + 1, ..touched },
    };
    match (prior, &found) {
        (PriorConditions::Hold, MatchResult::Yes(_)) => {
            if recent.action != RecentAction::Remove {
                traced.remembered.insert(recent.list.clone());
            }
            traced.touched.insert(key, changed);
        }
        (PriorConditions::Hold | PriorConditions::Unknown, MatchResult::Unknown(_))
        | (PriorConditions::Unknown, MatchResult::Yes(_)) => {
            traced.touched.insert(key, ListChange { unsure: true, ..touched });
        }
        _ => {}
    }
    found
}

/// Whether the list has the packet's address, from the kernel's list and the changes during the walk.
fn listed(
    recent: &RecentMatch,
    touched: ListChange,
    traced: &mut TracedPacket,
    context: &HookContext<'_>,
) -> MatchResult {
    // --remove needs one entry, whatever the hit count.
    let hits = if recent.action == RecentAction::Remove { 1 } else { recent.hits.max(1) };
    if touched.unsure {
        return MatchResult::Unknown(format!("a rule before that may match changes list {}", recent.list));
    }
    if touched.hits >= hits {
        return MatchResult::Yes(1.0);
    }
    if touched.removed {
        return MatchResult::No;
    }
    if !recent.of_sender {
        return MatchResult::Unknown(format!("list {} is of destinations or networks, which is not read", recent.list));
    }
    traced.asked.insert(recent.list.clone());
    let Some(age) = context.memory.get(&recent.list) else { return MatchResult::No };
    if recent.action != RecentAction::Remove && recent.seconds.is_some_and(|seconds| *age > seconds) {
        return MatchResult::No;
    }
    if hits > touched.hits + 1 {
        return MatchResult::Unknown(format!("how often list {} saw the sender is not read", recent.list));
    }
    MatchResult::Yes(1.0)
}

/// Whether a set has an entry for the packet.
pub(super) fn in_set(
    name: &str,
    of_source: &[bool],
    return_nomatch: bool,
    traced: &mut TracedPacket,
    context: &HookContext<'_>,
) -> MatchResult {
    if traced.changed_sets.contains(name) {
        return MatchResult::Unknown(format!("a rule before changes set {name}"));
    }
    if return_nomatch {
        return MatchResult::Unknown(format!("elements of set {name} that do not match are not distinguished"));
    }
    let packet = &traced.packet;
    if let Some(set) = context.node.held.sets.get(name) {
        return set.has([packet.source, packet.destination], packet.protocol.number(), of_source).into();
    }
    let query = SetQuery {
        set: name.to_owned(),
        of_source: of_source.to_vec(),
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol.number(),
        in_interface: context.in_interface.to_owned(),
        out_interface: context.out_interface(traced).unwrap_or_default().to_owned(),
        mark: traced.mark,
    };
    match context.node.answers.get(&query) {
        Some(Ok(has)) => (*has).into(),
        Some(Err(why)) => MatchResult::Unknown(why.clone()),
        None => {
            traced.queries.insert(query);
            MatchResult::Unknown(format!("set {name} was not read"))
        }
    }
}
