//! Flow tables: the outcomes of single connections that Kubernetes promises, in every mode.
//!
//! `flows/<case>.yaml` is compared with rules or with real packets. A table is a list of flows:
//!
//! ```yaml
//! like: 733-sync-periods        # take over that case's flows, except those given here again
//! flows:
//! - from: [pod, outside]        # pod | host | outside | an address, optionally "via" an interface; one or several
//!   to: 10.96.10.11:80/tcp      # one or several
//!   expect: ["10.244.1.5:8080, masqueraded", "10.244.2.5:8080"]   # equally likely; or reject, drop, untouched
//!   remembers: 10.244.1.5:8080  # the sender was sent to this endpoint before ...
//!   ago: 100                    # ... so many seconds ago
//!   state: invalid              # new (the default), established, related
//!   modes: {nftables: reject}   # the outcome in a mode that is known to differ
//! ```

mod check;
mod machine;
mod packets;
mod spelling;
mod table;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use check::{Answer, Question, check_iptables};
pub use packets::{PacketSampler, entry};
pub use spelling::Expected;
pub use table::{Flow, FlowTable};

/// Checks the case's flow table against iptables rules.
///
/// The rules are the output of iptables-save and ip6tables-save, or a restore input with the jumps from built-in
/// chains.
///
/// # Errors
/// The first flow with another outcome and the rules that decided it, or an invalid table or rule.
pub fn check_flows(case: &str, rules_text_v4: &str, rules_text_v6: &str) -> Result<usize, String> {
    check_iptables(&FlowTable::load(case)?, rules_text_v4, rules_text_v6).map_err(|error| format!("{case}: {error}"))
}

/// The cases with a flow table, sorted.
///
/// # Errors
/// If the folder of tables cannot be read.
pub fn cases() -> Result<Vec<String>, String> {
    let folder = folder();
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut cases = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| error.to_string())?.file_name();
        cases.extend(name.to_string_lossy().strip_suffix(".yaml").map(str::to_owned));
    }
    cases.sort();
    Ok(cases)
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("flows")
}
