//! Prepares the kernel for IPVS mode: sysctls, timeouts, the device and the sets.

use std::collections::BTreeMap;
use std::time::Duration;

use netfilter::IpFamily;
use netfilter::ipvs::{Scheduler, Timeouts};
use netfilter::kernel::ipvs::check_scheduler;
use netfilter::kernel::{IpSetError, IpvsError, IpvsTable, SetOperation};
use tracing::warn;

use super::kernel::Kernel;
use super::names::{DEVICE, SetId};
use super::settings::HASH_SCHEDULER;
use crate::backend::SyncError;
use crate::model::IpvsConfig;
use crate::model::config::ServiceMetrics;

const DEFAULT_SCHEDULER: &str = "rr";

/// The configured scheduler.
pub(super) fn scheduler(config: &IpvsConfig) -> Result<Scheduler, SyncError> {
    let name = if config.scheduler.is_empty() { DEFAULT_SCHEDULER } else { &config.scheduler };
    Scheduler::parse(name)
        .ok_or_else(|| SyncError(format!("ipvs.scheduler: {name:?} is not a valid scheduler name; try \"rr\"")))
}

/// Checks that the kernel has IPVS and the configured scheduler. A scheduler in use exists.
///
/// # Errors
/// What is missing.
pub fn check(table: &mut dyn IpvsTable, config: &IpvsConfig) -> Result<(), SyncError> {
    let scheduler = scheduler(config)?;
    let mut in_use = false;
    table.virtual_servers(IpFamily::V4, &mut |server| in_use |= server.scheduler == scheduler)?;
    if in_use {
        return Ok(());
    }
    Ok(check_scheduler(table, scheduler)?)
}

/// Checks that the kernel has the scheduler of Services that ask for a hash; returns what it lacks.
pub(super) fn check_hash(table: &mut dyn IpvsTable) -> Result<(), String> {
    let scheduler = Scheduler::parse(HASH_SCHEDULER).ok_or_else(|| format!("no scheduler {HASH_SCHEDULER}"))?;
    match check_scheduler(table, scheduler) {
        Err(error @ IpvsError::NoScheduler(_)) => Err(error.to_string()),
        // Other failures say nothing about the scheduler, and show again when servers are written.
        _ => Ok(()),
    }
}

/// Sets the IPVS timeouts that differ.
pub(super) fn timeouts(kernel: &mut Kernel, config: &IpvsConfig) -> Result<(), SyncError> {
    let now = kernel.table.timeouts()?;
    let wanted = Timeouts {
        tcp: seconds(config.tcp_timeout),
        tcp_fin: seconds(config.tcp_fin_timeout),
        udp: seconds(config.udp_timeout),
    };
    let differs = |wanted: u32, now: u32| wanted != 0 && wanted != now;
    if differs(wanted.tcp, now.tcp) || differs(wanted.tcp_fin, now.tcp_fin) || differs(wanted.udp, now.udp) {
        // Other timeouts are no reason to serve nothing.
        if let Err(error) = kernel.table.set_timeouts(wanted) {
            warn!("cannot set IPVS timeouts: {error}");
        }
    }
    Ok(())
}

/// Sets the sysctls of IPVS mode. Those of IPVS itself exist once its module is loaded.
pub(super) fn sysctls(kernel: &mut Kernel, config: &IpvsConfig) -> Result<(), SyncError> {
    // Masquerading rules match IPVS connections in conntrack; connections of deleted servers end with their next
    // packet; persistence ignores servers of weight 0.
    let mut sysctls = vec![
        ("net/ipv4/vs/conntrack", 1),
        ("net/ipv4/vs/expire_nodest_conn", 1),
        ("net/ipv4/vs/expire_quiescent_template", 1),
        ("net/ipv4/ip_forward", 1),
    ];
    // Since 5.9 the kernel handles port reuse correctly (kubernetes/kubernetes#93297); the sysctl exists since 4.1.
    if kernel.host.kernel_version().is_some_and(|version| ((4, 1)..(5, 9)).contains(&version)) {
        sysctls.push(("net/ipv4/vs/conn_reuse_mode", 0));
    }
    if config.strict_arp {
        sysctls.extend([("net/ipv4/conf/all/arp_ignore", 1), ("net/ipv4/conf/all/arp_announce", 2)]);
    }
    let mut problems = Vec::new();
    for (name, value) in sysctls {
        if let Err(error) = kernel.host.set_sysctl(name, value) {
            problems.push(format!("{name} to {value} ({error})"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(SyncError(format!(
        "cannot set {}, which IPVS mode needs; set it on the host (sysctl -w), or run privileged",
        problems.join(", ")
    )))
}

/// Whole seconds, rounded up: zero means unset.
fn seconds(duration: Duration) -> u32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(whole).unwrap_or(u32::MAX)
}

/// Creates the device and the sets. Returns the sets whose name a foreign set of another type has.
pub(super) fn objects(
    kernel: &mut Kernel,
    family: IpFamily,
    metrics: ServiceMetrics,
) -> Result<BTreeMap<SetId, String>, SyncError> {
    // The device stays down, as in kube-proxy: its addresses are local nonetheless.
    kernel.links.create_dummy(DEVICE)?;
    let ids: Vec<SetId> = SetId::existing(metrics).collect();
    let operations: Vec<SetOperation> = ids.iter().map(|id| SetOperation::Create(id.set(family))).collect();
    let (mut unusable, mut failure) = (BTreeMap::new(), None);
    kernel.sets.apply(&operations, &mut |index, error| match error {
        IpSetError::Clash { .. } => _ = unusable.insert(ids[index], error.to_string()),
        error => _ = failure.get_or_insert(error),
    })?;
    failure.map_or(Ok(unusable), |error| Err(error.into()))
}

/// Destroys the sets that only count, of an earlier process with service metrics, once no rule matches them.
///
/// Returns whether none is left.
pub(super) fn destroy_counting_sets(kernel: &mut Kernel, family: IpFamily) -> Result<bool, SyncError> {
    let counting = SetId::ALL.into_iter().filter(|id| id.only_counts());
    let operations: Vec<SetOperation> = counting.map(|id| SetOperation::Destroy(id.set(family).name)).collect();
    let mut is_gone = true;
    kernel.sets.apply(&operations, &mut |_, error| is_gone &= matches!(error, IpSetError::NotFound(_)))?;
    Ok(is_gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_rounded_up_and_scheduler_names_are_checked() {
        for (millis, whole) in [(0, 0), (1, 1), (1000, 1), (900_000, 900), (1500, 2)] {
            assert_eq!(seconds(Duration::from_millis(millis)), whole);
        }
        let named = |name: &str| scheduler(&IpvsConfig { scheduler: name.to_owned(), ..IpvsConfig::default() });
        assert_eq!(named("").expect("the default scheduler").as_str(), "rr");
        assert!(named("a name with blanks").is_err_and(|error| error.0.contains("ipvs.scheduler")));
    }
}
