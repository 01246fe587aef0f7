//! `--cleanup`: takes away what any mode, of this program or of the real kube-proxy, left in the kernel.
//!
//! In: nothing, not even an API server. Out: a kernel without our traces. Must not know: modes.
//! sysctls stay as they are: nobody knows what they were before.

use netfilter::IpFamily;
use netfilter::kernel::WriterPriority;
use proxier::leftovers;
use tracing::{error, info};

/// Removes everything.
///
/// # Errors
/// What could not be removed; all else is gone.
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

/// The last line of a cleanup that failed. Only where the kernel refused permission do more rights help.
fn summary(problems: &[String]) -> String {
    let refused = ["Operation not permitted", "Permission denied", "you must be root"];
    let needs_rights = problems.iter().any(|problem| refused.iter().any(|words| problem.contains(words)));
    let hint = if needs_rights { "; it takes root in the host's network namespace" } else { "" };
    format!("encountered an error while tearing down rules: what is named above stays{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_asks_for_root_only_where_permission_was_refused() {
        let referenced =
            "IPv4: chain KUBE-SERVICES of table nat stays: the rule -A FOREIGN -j KUBE-SERVICES refers to it";
        assert!(!summary(&[referenced.to_owned()]).contains("root"));
        let refused = std::io::Error::from_raw_os_error(nix::libc::EPERM).to_string();
        assert!(summary(&[referenced.to_owned(), format!("IPv4: nf_tables: {refused}")]).contains("takes root"));
    }
}
