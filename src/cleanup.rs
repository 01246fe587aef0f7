//! `--cleanup`: removes the kernel state of every mode, ours or upstream's.
//!
//! Needs no API server. Sysctls keep their values, as nothing records what they were before.

use netfilter::IpFamily;
use netfilter::kernel::WriterPriority;
use proxier::leftovers;
use tracing::{error, info};

/// Removes all chains, tables, sets, virtual servers and devices of kube-proxy, in both IP families.
///
/// # Errors
/// The state that could not be removed; everything else is gone.
pub fn cleanup() -> Result<(), String> {
    let mut problems = Vec::new();
    for family in IpFamily::ALL {
        match leftovers::remove(family, None, false, &WriterPriority::default()) {
            Ok(()) => info!("{family}: cleaned up"),
            Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
        }
    }
    problems.iter().for_each(|problem| error!("{problem}"));
    if problems.is_empty() {
        return Ok(());
    }
    Err(summary(&problems))
}

/// The last line of a failed cleanup, with a hint about root only where the kernel denied permission.
fn summary(problems: &[String]) -> String {
    let refused = ["Operation not permitted", "Permission denied", "you must be root"];
    let needs_rights = problems.iter().any(|problem| refused.iter().any(|words| problem.contains(words)));
    let hint = if needs_rights { "; run it as root in the host's network namespace" } else { "" };
    format!("encountered an error while tearing down rules: the state named above was left in place{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_when_permission_was_denied_asks_for_root_and_otherwise_does_not() {
        let referenced =
            "IPv4: chain KUBE-SERVICES of table nat stays: the rule -A FOREIGN -j KUBE-SERVICES refers to it";
        assert!(!summary(&[referenced.to_owned()]).contains("root"));
        let refused = std::io::Error::from_raw_os_error(nix::libc::EPERM).to_string();
        assert!(summary(&[referenced.to_owned(), format!("IPv4: nf_tables: {refused}")]).contains("run it as root"));
    }
}
