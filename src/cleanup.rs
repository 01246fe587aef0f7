//! `--cleanup`: takes away what any mode, of this program or of the real kube-proxy, left in the kernel.
//!
//! In: nothing, not even an API server. Out: a kernel without our traces. Must not know: modes.
//! sysctls stay as they are: nobody knows what they were before.

use netfilter::IpFamily;
use netfilter::kernel::Turns;
use proxier::leftovers;
use tracing::{error, info};

/// Removes everything.
///
/// # Errors
/// What could not be removed; all else is gone.
pub fn cleanup() -> Result<(), String> {
    let mut problems = Vec::new();
    for family in IpFamily::ALL {
        match leftovers::remove(family, None, false, &Turns::default()) {
            Ok(()) => info!("{family}: cleaned up"),
            Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
        }
    }
    problems.iter().for_each(|problem| error!("{problem}"));
    if problems.is_empty() {
        return Ok(());
    }
    let text = "encountered an error while tearing down rules: what is named above stays; \
                it takes root in the host's network namespace";
    Err(text.to_owned())
}
