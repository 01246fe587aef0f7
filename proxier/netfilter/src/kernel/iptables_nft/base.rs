//! The base chains of iptables-nft's tables.

use std::io;

use nix::libc;

use crate::IpFamily;
use crate::iptables::Table;
use crate::kernel::netlink::Request;
use crate::kernel::nftables::uapi::*;

/// The built-in chains, by the number of their hook (`NF_INET_*`).
pub(super) const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Type and priority of a built-in chain; `None` if the table has no such chain.
fn base_chain(table: Table, hook: usize) -> Option<(&'static str, i32)> {
    match (table, BUILTIN.get(hook)?) {
        (Table::Filter, &"INPUT" | &"FORWARD" | &"OUTPUT") => Some(("filter", 0)),
        (Table::Nat, &"PREROUTING" | &"OUTPUT") => Some(("nat", NF_IP_PRI_NAT_DST)),
        (Table::Nat, &"INPUT" | &"POSTROUTING") => Some(("nat", NF_IP_PRI_NAT_SRC)),
        // A changed packet of the node's own is routed again.
        (Table::Mangle, &"OUTPUT") => Some(("route", NF_IP_PRI_MANGLE)),
        (Table::Mangle, _) => Some(("filter", NF_IP_PRI_MANGLE)),
        _ => None,
    }
}

/// Appends what makes a new chain the table's built-in one; returns whether the table has it.
///
/// The policy is left out: a new chain accepts, and an existing one keeps the administrator's.
pub(super) fn describe(table: Table, name: &str, request: &mut Request) -> bool {
    let hook = BUILTIN.iter().position(|known| *known == name);
    let Some((hook, (kind, priority))) = hook.and_then(|hook| Some((hook, base_chain(table, hook)?))) else {
        return false;
    };
    request.nested(NFTA_CHAIN_HOOK, |nest| {
        nest.attribute(NFTA_HOOK_HOOKNUM, &u32::try_from(hook).unwrap_or(u32::MAX).to_be_bytes());
        nest.attribute(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
    });
    request.text(NFTA_CHAIN_TYPE, kind);
    true
}

/// A chain of this name belongs to the probe alone and is never committed.
pub(super) const PROBE: &str = "NATIVE-PROBE";

/// What the kernel must support, as the rule of a chain with masquerading.
pub(super) fn probe_rule() -> crate::iptables::Rule {
    let comment = crate::iptables::Comment {
        prefix: PROBE,
        subject: std::sync::Arc::default(),
        suffix: crate::iptables::Suffix::Text(""),
    };
    crate::iptables::Rule {
        matches: vec![crate::iptables::Match::Comment(comment)],
        target: Some(crate::iptables::Target::Masquerade { random_fully: true }),
        ..crate::iptables::Rule::default()
    }
}

/// The message of a kernel that lacks something, or refuses for want of rights.
pub(super) fn unsupported(family: IpFamily, error: &str) -> String {
    if error.contains(&io::Error::from_raw_os_error(libc::EPERM).to_string()) {
        return format!("no permission to write {} rules (CAP_NET_ADMIN): {error}", family.iptables());
    }
    format!(
        "nf_tables cannot hold {} rules (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_COMPAT): {error}",
        family.iptables()
    )
}
