//! Finding the Service ports that the tool refuses when it does not say which lines.
//!
//! In: Service ports, one of which is at fault. Out: those that are refused on their own, found by halving.
//! Must not know: why. The legacy flavour names no line when the kernel refuses.

use super::names::{MARK_MASQ, PROBE};
use super::render::{PortView, SHARED};
use super::settings::Settings;
use crate::kernel::iptables::IptablesTool;
use crate::model::{CategorizedEndpoints, ServicePortName, Snapshot};
use crate::netfilter::Restore;
use crate::netfilter::iptables::Table;

/// How many are looked for at a time: with these left out, the next attempt tells whether there are more.
const MAX_CULPRITS: usize = 50;

/// Those of `candidates` that are refused even alone, each with the tool's words; none if all together are taken, or
/// if the tool refuses everything.
pub(super) fn culprits(
    tool: &mut dyn IptablesTool,
    snapshot: &Snapshot<'_>,
    settings: &Settings,
    candidates: Vec<&ServicePortName>,
) -> Vec<(ServicePortName, String)> {
    if attempt(tool, snapshot, settings, &[]).is_err() {
        return Vec::new();
    }
    let mut culprits = Vec::new();
    let mut rest = vec![candidates];
    while let Some(group) = rest.pop() {
        let Err(reason) = attempt(tool, snapshot, settings, &group) else { continue };
        if let [alone] = group[..] {
            culprits.push((alone.clone(), reason));
        } else {
            let (a, b) = group.split_at(group.len() / 2);
            rest.extend([a.to_vec(), b.to_vec()]);
        }
        if culprits.len() >= MAX_CULPRITS {
            break;
        }
    }
    culprits
}

/// Writes the Service ports' own chains, which nothing may lead to yet, and their other rules into a chain that nothing
/// ever leads to.
fn attempt(
    tool: &mut dyn IptablesTool,
    snapshot: &Snapshot<'_>,
    settings: &Settings,
    ports: &[&ServicePortName],
) -> Result<(), String> {
    const PROBED: [Table; 2] = [Table::Filter, Table::Nat];
    let mut restore = Restore::default();
    for table in PROBED {
        restore.declare(table, PROBE, None);
    }
    let marks = super::base::chains(settings).into_iter().filter(|(_, chain, _)| *chain == MARK_MASQ);
    for (table, chain, rules) in marks {
        restore.chain(table, chain, &rules, None);
    }
    for name in ports {
        let Some(port) = snapshot.ports.get(*name) else { continue };
        let endpoints = snapshot.endpoints.of(name);
        let categorized = CategorizedEndpoints::of(&endpoints, port, snapshot.node);
        let mut view = PortView::new(name, port, &categorized, settings, false);
        for ((table, _), rules) in SHARED.iter().zip(view.shared()) {
            for rule in &rules {
                restore.append(*table, PROBE, rule, None);
            }
        }
        view.own(|chain, rules| restore.chain(Table::Nat, chain, &rules, None));
    }
    let result = tool.restore(&restore).map_err(|error| error.message);
    let mut remove = Restore::default();
    for table in PROBED {
        remove.delete(table, PROBE);
    }
    // Nothing leads there: at worst an idle chain stays.
    let _ = tool.restore(&remove);
    result
}
