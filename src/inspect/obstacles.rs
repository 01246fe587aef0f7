//! What keeps the proxy from changing its rules (tables that another process owns, syncs that do not succeed), and these
//! commands from reading them (missing rights).

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netfilter::IpFamily;
use netfilter::kernel::{process_name, table_flags};
use proxier::model::Mode;
use proxier::nftables::TABLE;
use proxier_inspect::node::Unread;

use super::NodeInspection;
use super::running::body;

/// Metrics of every kube-proxy: when a change was queued last, and when a sync succeeded last.
const QUEUED: &str = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
/// When the process began.
const STARTED: &str = "process_start_time_seconds";
/// Ours: how long objects of a kind could not be read.
const FAILING: &str = "kubeproxy_watch_failing_seconds";
/// Shorter failures are retried: an API server that restarts, a rolled-out certificate.
const WATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The time after which a queued change should be in the kernel, beyond the minimum interval of syncs.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// `CAP_NET_ADMIN`
const NET_ADMIN: u32 = 12;

/// A table of nf_tables that only one process may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedTable {
    /// Family and name.
    pub table: String,
    /// The port ID of the owner's netlink socket, usually its process ID.
    pub owner: u32,
    /// The name of the process with that ID, empty if there is none.
    pub process: String,
}

impl NodeInspection {
    /// The tables that the proxy writes and that another process owns (`flags owner`). What cannot be read is noted.
    #[must_use]
    pub fn owned_tables(&mut self) -> Vec<OwnedTable> {
        let names: &[&str] = match self.settings.mode {
            Mode::Nftables => &[TABLE],
            Mode::Iptables => &["nat", "filter", "mangle"],
            Mode::Ipvs => &["nat", "filter"],
        };
        let mut found = Vec::new();
        for family in IpFamily::ALL.into_iter().filter(|family| family.available().is_ok()) {
            for name in names {
                let table = format!("{} {name}", family.nft());
                match table_flags(family, name) {
                    Ok(flags) => found.extend(flags.and_then(|flags| flags.owner).map(|owner| OwnedTable {
                        process: process_name(owner),
                        table,
                        owner,
                    })),
                    // That rights are missing is said of all rules.
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                    Err(error) => self.unread.push(Unread::new(&format!("table {table}"), error.to_string())),
                }
            }
        }
        found
    }

    /// The changes that the running proxy has not written in time, by its metrics: the label of the family (empty if there
    /// is none), and for how long.
    #[must_use]
    pub fn overdue_syncs(&self, metrics: &str) -> Vec<(String, Duration)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        overdue(metrics, now, SYNC_TIMEOUT + self.settings.proxier.periods.min)
    }

    /// The metrics of the running proxy; `None` if none runs or answers.
    #[must_use]
    pub fn metrics_of_proxy(&self) -> Option<String> {
        let mut at = self.settings.metrics.filter(|_| !self.running_proxies().is_empty())?;
        if at.ip().is_unspecified() {
            at.set_ip(if at.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        body(at, "/metrics").ok()
    }
}

/// The kinds of objects that the running proxy has failed to read for a while, by its metrics, and for how long. Upstream's
/// proxy does not say so.
#[must_use]
pub fn unread_kinds(metrics: &str) -> Vec<(String, Duration)> {
    let failing = values(metrics, FAILING);
    failing.filter(|(_, lasted)| *lasted > WATCH_TIMEOUT).collect()
}

/// How long a proxy has run if it has not synced any family yet, by its metrics; `None` if it has, or is younger than a
/// start takes.
#[must_use]
pub fn age_without_sync(metrics: &str) -> Option<Duration> {
    let (_, started) = values(metrics, STARTED).next()?;
    let is_synced = values(metrics, SYNCED).any(|(_, at)| at > Duration::ZERO);
    let age = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.checked_sub(started)?;
    (!is_synced && age > SYNC_TIMEOUT).then_some(age)
}

/// The samples of a metric: the value of their first label (empty if there is none), and the time that they mean.
fn values<'a>(metrics: &'a str, name: &'static str) -> impl Iterator<Item = (String, Duration)> + 'a {
    metrics.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let seconds = value.parse::<f64>().ok()?;
        let time = Duration::try_from_secs_f64(seconds).ok()?;
        Some((labels.split('"').nth(1).unwrap_or_default().to_owned(), time))
    })
}

/// The families whose last change was queued `timeout` ago or earlier and not synced since, with its age.
fn overdue(metrics: &str, now: Duration, timeout: Duration) -> Vec<(String, Duration)> {
    let synced =
        |family: &str| values(metrics, SYNCED).find(|(other, _)| other == family).map_or(Duration::ZERO, |(_, at)| at);
    let late = values(metrics, QUEUED)
        .filter(|(family, queued)| *queued > synced(family) && now.saturating_sub(*queued) > timeout);
    late.map(|(family, queued)| (family, now.saturating_sub(queued))).collect()
}

/// What to do where this process may not read the kernel's rules; `None` if it has the right to.
///
/// nf_tables answers no request without `CAP_NET_ADMIN` (`nfnetlink_rcv`). If the kernel does not tell the rights, they
/// are taken as there.
#[must_use]
pub fn missing_right() -> Option<&'static str> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    (!has(NET_ADMIN, &status)?).then_some("the right CAP_NET_ADMIN is missing: run it as root")
}

/// Whether the effective rights in a status file include one; `None` if it does not tell.
fn has(capability: u32, status: &str) -> Option<bool> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let rights = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(rights >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_is_read_from_its_bit() {
        let status = |rights: &str| format!("Name:\tkube-proxy\nCapPrm:\t0000000000000000\nCapEff:\t{rights}\n");
        assert_eq!(has(NET_ADMIN, &status("0000000000001000")), Some(true));
        assert_eq!(has(NET_ADMIN, &status("000001ffffffefff")), Some(false));
        assert_eq!(has(NET_ADMIN, "Name:\tkube-proxy\n"), None);
    }

    #[test]
    fn kinds_that_fail_for_long_are_told_from_short_failures() {
        let metrics = "kubeproxy_watch_failing_seconds{kind=\"Node\"} 0\n\
            kubeproxy_watch_failing_seconds{kind=\"Service\"} 3.5\n\
            kubeproxy_watch_failing_seconds{kind=\"EndpointSlice\"} 312.25\n";
        assert_eq!(unread_kinds(metrics), [("EndpointSlice".to_owned(), Duration::from_millis(312_250))]);
        assert_eq!(unread_kinds("kubeproxy_watch_failing_seconds{kind=\"Node\"} NaN\n"), []);
    }

    #[test]
    fn proxy_that_never_synced_is_told_from_one_that_has() {
        let started = "process_start_time_seconds 1000\n";
        assert!(age_without_sync(started).is_some_and(|age| age.as_secs() > 1_000_000));
        let synced = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}";
        assert!(age_without_sync(&format!("{started}{synced} 0\n")).is_some());
        assert_eq!(age_without_sync(&format!("{started}{synced} 1001.5\n")), None);
        assert_eq!(age_without_sync(""), None);
    }

    #[test]
    fn change_that_was_queued_long_ago_and_not_synced_since_is_overdue() {
        let metrics = "# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge\n\
            kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1.0e+03\n\
            kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 1.0e+03\n\
            kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 1000.5\n";
        let at = |seconds| overdue(metrics, Duration::from_secs(seconds), Duration::from_secs(10));
        assert_eq!(at(1005), []);
        assert_eq!(at(1030), [("IPv4".to_owned(), Duration::from_secs(30))]);
        let unlabelled = metrics.replace("{ip_family=\"IPv4\"}", "");
        assert_eq!(overdue(&unlabelled, Duration::from_secs(1030), Duration::ZERO)[0].0, "");
    }
}
