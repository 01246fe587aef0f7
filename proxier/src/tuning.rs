//! Sets conntrack's table size and timeouts at startup.

use std::io;

use netfilter::kernel::Host;
use thiserror::Error;
use tracing::info;

use crate::model::ConntrackConfig;

/// kube-proxy's limit for the size derived from CPUs.
const MOST_BY_CORES: u64 = 1 << 20;
const MAX: &str = "net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// A sysctl and its desired value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysctlSetting {
    /// The configuration field, for messages.
    pub field: &'static str,
    /// The sysctl, as [`Host`] names it.
    pub sysctl: &'static str,
    /// The value.
    pub value: i64,
}

/// A sysctl that cannot be set on this host. Services work without it.
#[derive(Debug, Error)]
#[error("conntrack.{}: cannot set {} to {}, it stays {}: {source}; {}", setting.field, setting.sysctl, setting.value, known(*now), advice(source))]
pub struct SysctlNotSet {
    setting: SysctlSetting,
    now: Option<i64>,
    source: io::Error,
}

/// A value that the kernel refuses on every host.
#[derive(Debug, Error)]
#[error("conntrack.{}: cannot set {} to {}: {source}; set another value, or 0 to keep the kernel's", setting.field, setting.sysctl, setting.value)]
pub struct InvalidSysctlValue {
    setting: SysctlSetting,
    source: io::Error,
}

fn known(value: Option<i64>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "set it on the host, or run --init-only once where /proc/sys is writable",
        io::ErrorKind::NotFound => "the kernel has no connection tracking (module nf_conntrack_netlink)",
        _ => "only root in the host's own network namespace may set it",
    }
}

/// The maximum number of entries; `None` keeps the current one.
///
/// Unlike in kube-proxy, a `min` above a million counts (behaviour.yaml I12).
fn max(config: &ConntrackConfig, cpus: u32) -> Option<u64> {
    let by_cores = u64::from(config.max_per_core) * u64::from(cpus);
    (by_cores > 0).then(|| by_cores.min(MOST_BY_CORES).max(config.min.into()))
}

/// The desired sysctls, in the order in which they are set.
#[must_use]
pub fn plan(config: &ConntrackConfig, cpus: u32) -> Vec<SysctlSetting> {
    let setting =
        |field, sysctl, value: u64| SysctlSetting { field, sysctl, value: i64::try_from(value).unwrap_or(i64::MAX) };
    let mut settings: Vec<SysctlSetting> =
        max(config, cpus).map(|max| setting("maxPerCore", MAX, max)).into_iter().collect();
    if config.tcp_be_liberal {
        settings.push(setting("tcpBeLiberal", "net/netfilter/nf_conntrack_tcp_be_liberal", 1));
    }
    let timeouts = [
        ("tcpEstablishedTimeout", "net/netfilter/nf_conntrack_tcp_timeout_established", config.tcp_established_timeout),
        ("tcpCloseWaitTimeout", "net/netfilter/nf_conntrack_tcp_timeout_close_wait", config.tcp_close_wait_timeout),
        ("udpTimeout", "net/netfilter/nf_conntrack_udp_timeout", config.udp_timeout),
        ("udpStreamTimeout", "net/netfilter/nf_conntrack_udp_timeout_stream", config.udp_stream_timeout),
    ];
    let wanted = timeouts.into_iter().filter(|(_, _, timeout)| !timeout.is_zero());
    // Round up: half a second must not become zero.
    settings.extend(wanted.map(|(field, sysctl, timeout)| {
        setting(field, sysctl, timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0))
    }));
    settings
}

/// Sets the sysctls that differ, and returns the ones that cannot be set here.
///
/// The sizes of the table and of its hash are only raised, since an administrator may have raised them
/// (kubernetes/kubernetes#141943). kube-proxy exits where `/proc/sys` is read-only or the network namespace is not the
/// host's; here Services work all the same.
///
/// # Errors
/// If the kernel refuses a value on every host.
pub fn apply(
    config: &ConntrackConfig,
    cpus: u32,
    host: &mut dyn Host,
) -> Result<Vec<SysctlNotSet>, InvalidSysctlValue> {
    let (settings, mut not_set) = (plan(config, cpus), Vec::new());
    // After boot, no rule may have loaded conntrack yet.
    let is_absent = |setting: &SysctlSetting| {
        host.sysctl(setting.sysctl).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    if settings.iter().any(is_absent) {
        host.load_conntrack();
    }
    for setting in settings {
        if setting.sysctl != MAX {
            not_set.extend(set(setting, host)?);
            continue;
        }
        match raise(setting, host)? {
            // Four entries per hash bucket are still fast.
            None => {
                not_set.extend(raise(SysctlSetting { sysctl: BUCKETS, value: setting.value / 4, ..setting }, host)?)
            }
            problem => not_set.extend(problem),
        }
    }
    Ok(not_set)
}

/// Raises a value, never lowers it. An unreadable value is not written, as that could lower it.
fn raise(setting: SysctlSetting, host: &mut dyn Host) -> Result<Option<SysctlNotSet>, InvalidSysctlValue> {
    match host.sysctl(setting.sysctl) {
        Ok(now) if now >= setting.value => {
            if now > setting.value {
                info!("conntrack.{}: {} stays {now}, above {}", setting.field, setting.sysctl, setting.value);
            }
            Ok(None)
        }
        Ok(_) => set(setting, host),
        Err(source) => Ok(Some(SysctlNotSet { setting, now: None, source })),
    }
}

fn set(setting: SysctlSetting, host: &mut dyn Host) -> Result<Option<SysctlNotSet>, InvalidSysctlValue> {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    let Err(source) = host.set_sysctl(setting.sysctl, setting.value) else { return Ok(None) };
    if matches!(source.kind(), ReadOnlyFilesystem | PermissionDenied | NotFound | Unsupported) {
        return Ok(Some(SysctlNotSet { setting, now: host.sysctl(setting.sysctl).ok(), source }));
    }
    Err(InvalidSysctlValue { setting, source })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn nothing() -> ConntrackConfig {
        ConntrackConfig {
            max_per_core: 0,
            min: 0,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::ZERO,
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }

    fn planned(config: &ConntrackConfig, cpus: u32) -> Vec<(&'static str, i64)> {
        plan(config, cpus).into_iter().map(|setting| (setting.field, setting.value)).collect()
    }

    #[test]
    fn a_minimum_without_max_per_core_sets_nothing() {
        assert_eq!(planned(&ConntrackConfig { min: 131_072, ..nothing() }, 4), []);
    }

    #[test]
    fn the_table_size_follows_cores_and_minimum() {
        for (max_per_core, min, cpus, max) in [
            (32_768, 131_072, 2, 131_072),
            (32_768, 131_072, 8, 262_144),
            (32_768, 131_072, 256, 1_048_576),
            // kube-proxy would have it at 1048576.
            (32_768, 2_000_000, 256, 2_000_000),
            (1, 0, 3, 3),
        ] {
            assert_eq!(planned(&ConntrackConfig { max_per_core, min, ..nothing() }, cpus), [("maxPerCore", max)]);
        }
    }

    #[test]
    fn timeouts_are_whole_seconds_and_never_zero() {
        let config = ConntrackConfig {
            tcp_established_timeout: Duration::from_hours(24),
            tcp_close_wait_timeout: Duration::from_millis(1),
            udp_stream_timeout: Duration::from_millis(2500),
            tcp_be_liberal: true,
            ..nothing()
        };
        let expected = [
            ("tcpBeLiberal", 1),
            ("tcpEstablishedTimeout", 86_400),
            ("tcpCloseWaitTimeout", 1),
            ("udpStreamTimeout", 3),
        ];
        assert_eq!(planned(&config, 1), expected);
    }
}
