//! What is set once, at the start.
//!
//! In: the configuration. Out: conntrack's sysctls, the OOM score; what cannot be set is said. Must not know: rules.
//! It is a part of the composition root, and so may look at the kernel.

use netfilter::kernel::{Host, cpus, set_oom_score};
use proxier::tuning;
use tracing::{info, warn};

use crate::config::ValidatedConfig;

/// Sets conntrack's sysctls. Where they may not be set, the proxy goes on: kube-proxy would end.
///
/// # Errors
/// A value that the kernel takes nowhere.
pub fn conntrack(settings: &ValidatedConfig, host: &mut dyn Host) -> Result<(), String> {
    let unfulfilled = tuning::apply(&settings.conntrack, cpus(), host);
    let unfulfilled = unfulfilled
        .map_err(|error| format!("could not set conntrack parameters from kube-proxy configuration: {error}"))?;
    unfulfilled.iter().for_each(|wish| warn!("{wish}"));
    Ok(())
}

/// Has the kernel spare this process when memory runs out.
pub fn oom_score(settings: &ValidatedConfig) {
    if let Err(error) = set_oom_score(settings.oom_score_adj) {
        info!("oomScoreAdj: it cannot be set to {}: {error}", settings.oom_score_adj);
    }
}
