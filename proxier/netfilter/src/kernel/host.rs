//! The rest of the host: sysctls, addresses, counters.
//!
//! In: names. Out: what the running kernel says in the network namespace of the calling thread.
//! Must not know: who wants to know.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::time::TimeValLike;

use crate::IpFamily;

/// What a mode needs of the host.
pub trait Host: Send + std::fmt::Debug {
    /// Reads a numeric sysctl, named as below `/proc/sys`, or a parameter of a module by its whole path.
    ///
    /// # Errors
    /// If there is none, or it is not a number.
    fn sysctl(&mut self, name: &str) -> io::Result<i64>;

    /// Writes a sysctl, unless it has that value: `/proc/sys` may be read-only and right all the same.
    ///
    /// # Errors
    /// If it cannot be written.
    fn set_sysctl(&mut self, name: &str, value: i64) -> io::Result<()>;

    /// The addresses of all interfaces, in the kernel's order.
    ///
    /// # Errors
    /// If the kernel does not say.
    fn addresses(&mut self, family: IpFamily) -> io::Result<Vec<IpAddr>>;

    /// The same without those of one interface.
    ///
    /// # Errors
    /// If the kernel does not say.
    fn addresses_but(&mut self, _interface: &str, family: IpFamily) -> io::Result<Vec<IpAddr>> {
        self.addresses(family)
    }

    /// The kernel's version, as far as two numbers tell it.
    fn kernel_version(&mut self) -> Option<(u32, u32)>;

    /// Makes an nfacct counter, unless it exists.
    ///
    /// # Errors
    /// If the kernel has no nfacct, or we may not.
    fn ensure_counter(&mut self, name: &str) -> io::Result<()>;

    /// Has connection tracking loaded, where it is a module that nobody has used yet. Whether there is one shows by its
    /// sysctls.
    fn load_conntrack(&mut self) {}
}

/// The release of the running kernel, as `uname -r` prints it; empty if it cannot be read.
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

/// The CPU time of this thread and of the programs it has run to their end.
#[must_use]
pub fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let own = getrusage(UsageWho::RUSAGE_THREAD).map_or(Duration::ZERO, |usage| {
        let time = usage.user_time() + usage.system_time();
        Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or_default())
    });
    own + super::command::children_time()
}

/// The value of a numeric sysctl.
pub(super) fn number(name: &str, text: &str) -> io::Result<i64> {
    text.trim().parse().map_err(|_| io::Error::other(format!("{name} is {:?}, not a number", text.trim())))
}

/// The first two numbers of `6.1.0-18-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn path(sysctl: &str) -> PathBuf {
    // A whole path stays as it is.
    Path::new("/proc/sys").join(sysctl)
}

/// How many CPUs the machine has; limits of this process do not count.
#[must_use]
pub fn cpus() -> u32 {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    match count(&online) {
        0 => std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        n => n,
    }
}

/// Of a list like `0-3,8`.
pub(super) fn count(list: &str) -> u32 {
    let of = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(of).fold(0, u32::saturating_add)
}

/// Says how willingly this process is to be killed when memory runs out, from -1000 to 1000.
///
/// # Errors
/// If we may not: to lower it takes the capability `SYS_RESOURCE`.
pub fn set_oom_score(score: i32) -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// The signals that whoever started this process wants to be ignored, as a set of bits: 1 is signal 1.
#[must_use]
pub fn ignored_signals() -> u64 {
    ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The ignored signals of `/proc/PID/status`.
pub(super) fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_from_the_kernels_list() {
        assert_eq!([count("0-3,8\n"), count("0"), count("0-0,2-5"), count(""), count("x-2,5-3,-")], [5, 1, 5, 0, 0]);
    }

    #[test]
    fn a_release_begins_with_two_numbers() {
        assert_eq!(version("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(version("5.15-rc3"), Some((5, 15)));
        assert_eq!(version("linux"), None);
    }
}
