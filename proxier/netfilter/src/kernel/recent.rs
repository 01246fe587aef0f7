//! Reads the lists of `-m recent`, which hold the session affinity of iptables rules.

use std::io;
use std::net::IpAddr;

/// The supported values of `CONFIG_HZ`.
const HERTZ: [f64; 4] = [100.0, 250.0, 300.0, 1000.0];

/// The seconds since a list last saw an address, `None` if the address is not listed or no rule has made the list.
///
/// # Errors
/// If the list, `/proc/timer_list` or `/proc/uptime` cannot be read or understood.
pub fn last_seen(list: &str, address: IpAddr) -> io::Result<Option<u32>> {
    let text = match std::fs::read_to_string(format!("/proc/thread-self/net/xt_recent/{list}")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((_, seen)) = text.lines().filter_map(entry).find(|(source, _)| *source == address) else {
        return Ok(None);
    };
    let unclear = || io::Error::new(io::ErrorKind::InvalidData, "no jiffies in /proc/timer_list, or no uptime");
    let (timers, uptime) = (std::fs::read_to_string("/proc/timer_list")?, std::fs::read_to_string("/proc/uptime")?);
    age(seen, &timers, &uptime).map(Some).ok_or_else(unclear)
}

/// The seconds since a jiffies value, from `/proc/timer_list` and `/proc/uptime`.
pub(super) fn age(seen: u64, timers: &str, uptime: &str) -> Option<u32> {
    let now: u64 = timers.lines().find_map(|line| line.trim().strip_prefix("jiffies: ")?.trim().parse().ok())?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    Some(seconds(now.wrapping_sub(seen), hertz(now, uptime)?))
}

/// Parses a line: `src=10.244.1.9 ttl: 64 last_seen: 4294946716 oldest_pkt: 1 4294946716`.
pub(super) fn entry(line: &str) -> Option<(IpAddr, u64)> {
    let source = line.strip_prefix("src=")?.split(' ').next()?.parse().ok()?;
    let seen = line.split("last_seen: ").nth(1)?.split(' ').next()?.parse().ok()?;
    Some((source, seen))
}

/// The tick rate that fits the uptime. jiffies start five minutes before 2^32.
#[allow(clippy::cast_precision_loss)] // steps since the machine started
fn hertz(now: u64, uptime: f64) -> Option<f64> {
    let steps = now as f64 - 4_294_967_296.0;
    let error = |hertz: &f64| (steps - hertz * (uptime - 300.0)).abs();
    HERTZ.into_iter().min_by(|a, b| error(a).total_cmp(&error(b)))
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some hours at most
fn seconds(steps: u64, hertz: f64) -> u32 {
    (steps as f64 / hertz) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_become_seconds_at_every_tick_rate() {
        for hertz_of_kernel in HERTZ {
            let uptime = 1000.0;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // as the kernel counts
            let now = (4_294_967_296.0 + hertz_of_kernel * (uptime - 300.0)) as u64;
            assert_eq!(hertz(now, uptime), Some(hertz_of_kernel));
        }
        assert_eq!(seconds(2500, 250.0), 10);
        let line = "src=10.244.1.9 ttl: 64 last_seen: 4294946716 oldest_pkt: 1 4294946716";
        assert_eq!(entry(line), Some(("10.244.1.9".parse().expect("an address"), 4_294_946_716)));
    }
}
