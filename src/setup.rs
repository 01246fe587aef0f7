//! Applies settings that are set once at the start: conntrack sysctls and the OOM score.

use netfilter::kernel::{Host, cpus, set_oom_score};
use proxier::tuning;
use tracing::{info, warn};

use crate::config::ValidatedConfig;

/// Sets conntrack's sysctls. Where the kernel denies permission the proxy continues; kube-proxy would exit.
///
/// # Errors
/// A value that the kernel rejects everywhere.
pub fn conntrack(settings: &ValidatedConfig, host: &mut dyn Host) -> Result<(), String> {
    let unfulfilled = tuning::apply(&settings.conntrack, cpus(), host);
    let unfulfilled = unfulfilled
        .map_err(|error| format!("could not set conntrack parameters from kube-proxy configuration: {error}"))?;
    unfulfilled.iter().for_each(|wish| warn!("{wish}"));
    Ok(())
}

/// Sets how likely the kernel kills this process when memory runs out.
pub fn oom_score(settings: &ValidatedConfig) {
    if let Err(error) = set_oom_score(settings.oom_score_adj) {
        info!("Failed to set oomScoreAdj to {}: {error}", settings.oom_score_adj);
    }
}
