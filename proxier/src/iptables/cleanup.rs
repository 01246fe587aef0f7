//! Removing every trace of iptables mode, and nothing else.
//!
//! In: the tools. Out: tables without kube-proxy's chains and jumps. Must not know: Services.
//! Other chains that begin with KUBE- are the kubelet's or a network plugin's and stay, as do jumps to them.

use super::base;
use super::names;
use crate::backend::SyncError;
use crate::kernel::iptables::IptablesTool;
use crate::netfilter::iptables::{Chain, Table};
use crate::netfilter::{Restore, SavedTable};

const OURS: [(Table, &[Chain]); 3] = [
    (
        Table::Nat,
        &[names::SERVICES, names::NODE_PORTS, names::POSTROUTING, names::MARK_MASQ, names::CANARY, names::PROBE],
    ),
    (
        Table::Filter,
        &[
            names::SERVICES,
            names::EXTERNAL_SERVICES,
            names::FORWARD,
            names::NODE_PORTS,
            names::PROXY_FIREWALL,
            names::CANARY,
            names::PROBE,
        ],
    ),
    (Table::Mangle, &[names::CANARY]),
];

/// Removes jumps and chains from these tables, one after the other; a table that fails does not keep the others.
///
/// # Errors
/// One for each table that could not be cleaned.
pub fn cleanup(tool: &mut dyn IptablesTool, tables: &[Table]) -> Result<(), Vec<SyncError>> {
    let clean = |(table, chains): (Table, &[Chain])| -> Result<(), SyncError> {
        let saved = tool.save(table)?;
        let restore = removal(table, chains, &saved);
        if restore.is_empty() { Ok(()) } else { tool.restore(&restore).map_err(|error| SyncError(error.message)) }
    };
    let ours = OURS.into_iter().filter(|(table, _)| tables.contains(table));
    let errors: Vec<SyncError> = ours.map(clean).filter_map(Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn removal(table: Table, chains: &[Chain], saved: &SavedTable) -> Restore {
    let mut restore = Restore::default();
    let jumps = base::jumps();
    for jump in jumps.iter().filter(|jump| jump.table == table && jump.to != names::KUBELET_FIREWALL) {
        for _ in 0..jump.count(saved) {
            restore.remove(table, jump.from, &jump.rule);
        }
    }
    let per_service = |chain: &&Chain| table == Table::Nat && names::is_of_service(chain);
    let fixed = chains.iter().filter(|chain| saved.chains.contains_key(*chain));
    for chain in fixed.chain(saved.chains.keys().filter(per_service)) {
        restore.delete(table, *chain);
    }
    restore
}
