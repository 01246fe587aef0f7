//! What has to be there before there is any Service: sysctls, timeouts, the device, the sets.
//!
//! In: the configuration. Out: the kernel made ready, or an error that says what is missing and what to do.
//! Must not know: Services.

use std::collections::BTreeMap;
use std::time::Duration;

use netfilter::IpFamily;
use netfilter::ipvs::{Scheduler, Timeouts};
use netfilter::kernel::ipvs::check_scheduler;
use netfilter::kernel::{IpSetError, IpvsTable, SetOperation};
use tracing::warn;

use super::kernel::Kernel;
use super::names::{DEVICE, SetId};
use crate::backend::SyncError;
use crate::model::IpvsConfig;

const DEFAULT_SCHEDULER: &str = "rr";

/// The scheduler that is configured.
pub(super) fn scheduler(config: &IpvsConfig) -> Result<Scheduler, SyncError> {
    let name = if config.scheduler.is_empty() { DEFAULT_SCHEDULER } else { &config.scheduler };
    Scheduler::parse(name).ok_or_else(|| {
        SyncError(format!("ipvs.scheduler: {name:?} cannot be the name of an IPVS scheduler; try \"rr\""))
    })
}

/// Whether IPVS mode can work here: the kernel has IPVS, and the scheduler. One that is in use is there.
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

/// Sets the timeouts of IPVS, as far as they differ.
pub(super) fn timeouts(kernel: &mut Kernel, config: &IpvsConfig) -> Result<(), SyncError> {
    let now = kernel.table.timeouts()?;
    let wanted = Timeouts {
        tcp: seconds(config.tcp_timeout),
        tcp_fin: seconds(config.tcp_fin_timeout),
        udp: seconds(config.udp_timeout),
    };
    let differs = |wanted: u32, now: u32| wanted != 0 && wanted != now;
    if differs(wanted.tcp, now.tcp) || differs(wanted.tcp_fin, now.tcp_fin) || differs(wanted.udp, now.udp) {
        // Connections live a little longer or shorter: no reason to have none.
        if let Err(error) = kernel.table.set_timeouts(wanted) {
            warn!("cannot set the timeouts of IPVS: {error}");
        }
    }
    Ok(())
}

/// Sets the sysctls of IPVS mode. Those of IPVS itself are there once its module is.
pub(super) fn sysctls(kernel: &mut Kernel, config: &IpvsConfig) -> Result<(), SyncError> {
    // Masquerading and its rules need to know IPVS' connections; one whose server is gone ends with its next packet, and
    // a client stays with no server that goes.
    let mut sysctls = vec![
        ("net/ipv4/vs/conntrack", 1),
        ("net/ipv4/vs/expire_nodest_conn", 1),
        ("net/ipv4/vs/expire_quiescent_template", 1),
        ("net/ipv4/ip_forward", 1),
    ];
    // From 5.9 on the kernel itself does right by ports that are used again (kubernetes 93297); before 4.1 there is none.
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

/// Whole seconds, upwards: zero would mean something else.
fn seconds(duration: Duration) -> u32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(whole).unwrap_or(u32::MAX)
}

/// Makes the device and the sets. Returns the sets whose name is taken by a foreign set of another type.
pub(super) fn objects(kernel: &mut Kernel, family: IpFamily) -> Result<BTreeMap<SetId, String>, SyncError> {
    // It stays down, as kube-proxy leaves it: its addresses are local all the same.
    kernel.links.create_dummy(DEVICE)?;
    let operations = SetId::ALL.map(|id| SetOperation::Create(id.set(family)));
    let (mut unusable, mut failure) = (BTreeMap::new(), None);
    kernel.sets.apply(&operations, &mut |index, error| match error {
        IpSetError::Clash { .. } => _ = unusable.insert(SetId::ALL[index], error.to_string()),
        error => _ = failure.get_or_insert(error),
    })?;
    failure.map_or(Ok(unusable), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_whole_and_zero_is_no_value() {
        for (millis, whole) in [(0, 0), (1, 1), (1000, 1), (900_000, 900), (1500, 2)] {
            assert_eq!(seconds(Duration::from_millis(millis)), whole);
        }
        let describe = |name: &str| scheduler(&IpvsConfig { scheduler: name.to_owned(), ..IpvsConfig::default() });
        assert_eq!(describe("").expect("the usual one").as_str(), "rr");
        assert!(describe("a name with blanks").is_err_and(|error| error.0.contains("ipvs.scheduler")));
    }
}
