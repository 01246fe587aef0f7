//! The jumps and chains of iptables mode, for removing them.
//!
//! Other chains that begin with KUBE- belong to the kubelet or a network plugin and stay, as do jumps to them.

use netfilter::iptables::{Chain, Table};

use super::{base, names};
use crate::xtables::{ModeChains, TableChain};

const CHAINS: [TableChain; 14] = [
    (Table::Nat, names::SERVICES),
    (Table::Nat, names::NODE_PORTS),
    (Table::Nat, names::POSTROUTING),
    (Table::Nat, names::MARK_MASQ),
    (Table::Nat, names::CANARY),
    (Table::Nat, names::PROBE),
    (Table::Filter, names::SERVICES),
    (Table::Filter, names::EXTERNAL_SERVICES),
    (Table::Filter, names::FORWARD),
    (Table::Filter, names::NODE_PORTS),
    (Table::Filter, names::PROXY_FIREWALL),
    (Table::Filter, names::CANARY),
    (Table::Filter, names::PROBE),
    (Table::Mangle, names::CANARY),
];

/// The jumps and chains that the mode may have made.
#[must_use]
pub fn mode_chains() -> ModeChains {
    let mut jumps = base::jumps();
    jumps.retain(|jump| jump.to != names::KUBELET_FIREWALL);
    ModeChains { jumps, chains: CHAINS.to_vec(), services: vec![names::is_of_service] }
}

/// Whether a nat chain belongs to this mode.
pub(super) fn is_own_in_nat(chain: &Chain) -> bool {
    names::is_of_service(chain) || CHAINS.contains(&(Table::Nat, *chain))
}
