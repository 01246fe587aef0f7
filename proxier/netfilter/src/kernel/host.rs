//! Host facilities outside netfilter: sysctls, interface addresses, CPUs, nfacct counters.
//!
//! Values are those of the calling thread's network namespace.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::time::TimeValLike;

use crate::IpFamily;

/// Host facilities as a trait, so that tests can use a fake.
pub trait Host: Send + std::fmt::Debug {
    /// Reads a numeric sysctl by its path below `/proc/sys`.
    ///
    /// Also reads module parameters, by their absolute path.
    ///
    /// # Errors
    /// If it does not exist or is not a number.
    fn sysctl(&mut self, name: &str) -> io::Result<i64>;

    /// Writes a sysctl unless it already has the value.
    ///
    /// `/proc/sys` may be read-only although the value is right.
    ///
    /// # Errors
    /// If it cannot be written.
    fn set_sysctl(&mut self, name: &str, value: i64) -> io::Result<()>;

    /// The addresses of all interfaces, in the kernel's order.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn addresses(&mut self, family: IpFamily) -> io::Result<Vec<IpAddr>>;

    /// The addresses of all interfaces but one.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn addresses_but(&mut self, _interface: &str, family: IpFamily) -> io::Result<Vec<IpAddr>> {
        self.addresses(family)
    }

    /// The major and minor version of the kernel; `None` if unknown.
    fn kernel_version(&mut self) -> Option<(u32, u32)>;

    /// Creates an nfacct counter unless it exists.
    ///
    /// # Errors
    /// If the kernel has no nfacct or refuses permission.
    fn ensure_counter(&mut self, name: &str) -> io::Result<()>;

    /// Loads the nf_conntrack module if necessary.
    ///
    /// The existence of its sysctls shows whether it is loaded.
    fn load_conntrack(&mut self) {}
}

/// The release of the running kernel (`uname -r`); empty if it cannot be read.
#[must_use]
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The running host.
#[derive(Debug, Default)]
pub struct SystemHost;

impl Host for SystemHost {
    fn sysctl(&mut self, name: &str) -> io::Result<i64> {
        number(name, &std::fs::read_to_string(path(name))?)
    }

    fn set_sysctl(&mut self, name: &str, value: i64) -> io::Result<()> {
        if self.sysctl(name).is_ok_and(|now| now == value) {
            return Ok(());
        }
        std::fs::write(path(name), value.to_string())
    }

    fn addresses(&mut self, family: IpFamily) -> io::Result<Vec<IpAddr>> {
        self.addresses_but("", family)
    }

    fn addresses_but(&mut self, interface: &str, family: IpFamily) -> io::Result<Vec<IpAddr>> {
        let of = |address: nix::sys::socket::SockaddrStorage| {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        };
        let interfaces = nix::ifaddrs::getifaddrs()?.filter(|i| i.interface_name != interface);
        Ok(interfaces.filter_map(|i| i.address).filter_map(of).filter(|ip| IpFamily::of(ip) == family).collect())
    }

    fn kernel_version(&mut self) -> Option<(u32, u32)> {
        version(&std::fs::read_to_string(path("kernel/osrelease")).ok()?)
    }

    fn ensure_counter(&mut self, name: &str) -> io::Result<()> {
        super::nfacct::ensure(name)
    }

    fn load_conntrack(&mut self) {
        super::conntrack::load();
    }
}

/// The CPU time of this thread and of the programs that it has run.
#[must_use]
pub fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let own = getrusage(UsageWho::RUSAGE_THREAD).map_or(Duration::ZERO, |usage| {
        let time = usage.user_time() + usage.system_time();
        Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or_default())
    });
    own + super::command::children_time()
}

/// Parses the value of a numeric sysctl.
pub(super) fn number(name: &str, text: &str) -> io::Result<i64> {
    text.trim().parse().map_err(|_| io::Error::other(format!("{name} is {:?}, not a number", text.trim())))
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn path(sysctl: &str) -> PathBuf {
    // join() keeps an absolute path.
    Path::new("/proc/sys").join(sysctl)
}

/// The number of online CPUs of the machine, regardless of this process's affinity and cgroup.
#[must_use]
pub fn cpus() -> u32 {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    match count(&online) {
        0 => std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        n => n,
    }
}

/// The number of CPUs in a list such as `0-3,8`.
pub(super) fn count(list: &str) -> u32 {
    let of = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(of).fold(0, u32::saturating_add)
}

/// Sets the OOM score adjustment of this process, from -1000 to 1000.
///
/// # Errors
/// If permission is refused: lowering it requires `CAP_SYS_RESOURCE`.
pub fn set_oom_score(score: i32) -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// The signals that this process ignores since its start, as a bit set: bit 0 is signal 1.
#[must_use]
pub fn ignored_signals() -> u64 {
    ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The ignored signals in `/proc/PID/status`.
pub(super) fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_from_a_cpu_list() {
        assert_eq!([count("0-3,8\n"), count("0"), count("0-0,2-5"), count(""), count("x-2,5-3,-")], [5, 1, 5, 0, 0]);
    }

    #[test]
    fn release_starts_with_major_and_minor_version() {
        assert_eq!(version("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(version("5.15-rc3"), Some((5, 15)));
        assert_eq!(version("linux"), None);
    }
}
