//! Conntrack's size and timeouts, set once at the start.
//!
//! In: what the configuration asks for, the number of CPUs. Out: sysctls and their values; the host has them, or it is
//! said why not. Must not know: rules, or where the wishes come from.

use std::io;

use netfilter::kernel::Host;
use thiserror::Error;
use tracing::info;

use crate::model::ConntrackConfig;

/// kube-proxy's own bound for what CPUs alone ask for.
const MOST_BY_CORES: u64 = 1 << 20;
const MAX: &str = "net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// A value that a sysctl is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysctlSetting {
    /// The field of the configuration, for messages.
    pub field: &'static str,
    /// The sysctl, as [`Host`] names it.
    pub sysctl: &'static str,
    /// The value.
    pub value: i64,
}

/// A wish that this host cannot fulfil. Services work without it.
#[derive(Debug, Error)]
#[error("conntrack.{}: {} stays {}, not {}: {source}; {}", setting.field, setting.sysctl, known(*now), setting.value, advice(source))]
pub struct SysctlNotSet {
    setting: SysctlSetting,
    now: Option<i64>,
    source: io::Error,
}

/// A wish that no host would fulfil.
#[derive(Debug, Error)]
#[error("conntrack.{}: the kernel does not take {} for {}: {source}; give another value, or 0 to leave it as it is", setting.field, setting.value, setting.sysctl)]
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

/// How many entries the table should hold at most; `None`: as many as now. Unlike kube-proxy's, a `min` above a million
/// counts (behaviour.yaml I12).
fn max(config: &ConntrackConfig, cpus: u32) -> Option<u64> {
    let by_cores = u64::from(config.max_per_core) * u64::from(cpus);
    (by_cores > 0).then(|| by_cores.min(MOST_BY_CORES).max(config.min.into()))
}

/// The sysctls, in the order in which they are to be set.
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
    // Half a second is no reason to forget flows at once.
    settings.extend(wanted.map(|(field, sysctl, timeout)| {
        setting(field, sysctl, timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0))
    }));
    settings
}

/// Sets what is not so already, and returns what could not be set here. The size of the table and of its hash are only
/// raised: a node may have been given more by its administrator (kubernetes/kubernetes#141943).
///
/// kube-proxy ends where `/proc/sys` is read-only or the network namespace is not the host's. Whoever runs it there
/// wants its Services to work all the same.
///
/// # Errors
/// If the kernel takes a value nowhere.
pub fn apply(
    config: &ConntrackConfig,
    cpus: u32,
    host: &mut dyn Host,
) -> Result<Vec<SysctlNotSet>, InvalidSysctlValue> {
    let (settings, mut not_set) = (plan(config, cpus), Vec::new());
    // On a node that has just started no rule may have used it yet.
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
            // A table four times as long as its hash has buckets is still quick.
            None => {
                not_set.extend(raise(SysctlSetting { sysctl: BUCKETS, value: setting.value / 4, ..setting }, host)?)
            }
            problem => not_set.extend(problem),
        }
    }
    Ok(not_set)
}

/// Sets a value unless it is higher already. One that cannot be read is not written, as that could lower it.
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
    fn nothing_is_asked_for_unless_it_is() {
        assert_eq!(planned(&ConntrackConfig { min: 131_072, ..nothing() }, 4), []);
    }

    #[test]
    fn the_table_is_as_long_as_cores_and_minimum_ask() {
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
