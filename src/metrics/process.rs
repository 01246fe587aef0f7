//! Process metrics under the names of Go's collector: CPU time, memory, files, bytes sent and received.
//!
//! Read from `/proc/self` at each scrape; what cannot be read is left out.

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::Result;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::make::family;

/// Clock ticks per second in `/proc` (USER_HZ), a constant of the kernel's ABI.
const TICKS_PER_SECOND: f64 = 100.0;

/// Collects metrics of this process.
#[derive(Clone, Debug)]
pub struct ProcessCollector(Desc);

impl ProcessCollector {
    pub fn new() -> Result<Self> {
        // One name represents all of them.
        Ok(Self(Desc::new(
            "process_cpu_seconds_total".to_owned(),
            "process".to_owned(),
            Vec::new(),
            Default::default(),
        )?))
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = vec![start_time_family()];
        let mut add = |name: &str, help: &str, kind, value: Option<f64>| {
            families.extend(value.map(|value| family(&format!("process_{name}"), help, kind, &[(&[], value)])));
        };
        let (gauge, counter) = (MetricType::GAUGE, MetricType::COUNTER);
        let stat = stat();
        let field = |number: usize| stat.as_ref().and_then(|fields| fields.get(number)).copied();
        let cpu = field(UTIME).zip(field(STIME)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
        add("cpu_seconds_total", "Total user and system CPU time spent in seconds.", counter, cpu);
        add("open_fds", "Number of open file descriptors.", gauge, open_files());
        add("max_fds", "Maximum number of open file descriptors.", gauge, limit("Max open files"));
        add("virtual_memory_bytes", "Virtual memory size in bytes.", gauge, field(VSIZE));
        let most = limit("Max address space");
        add("virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.", gauge, most);
        add("resident_memory_bytes", "Resident memory size in bytes.", gauge, resident());
        let (received, sent) = network().unzip();
        add(
            "network_receive_bytes_total",
            "Number of bytes received by the process over the network.",
            counter,
            received,
        );
        add("network_transmit_bytes_total", "Number of bytes sent by the process over the network.", counter, sent);
        families
    }
}

/// The start time of the process, which `/metrics/slis` has too.
pub fn start_time_family() -> MetricFamily {
    let help = "Start time of the process since unix epoch in seconds.";
    family("process_start_time_seconds", help, MetricType::GAUGE, &[(&[], started())])
}

/// The start time of the process, in whole seconds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it is a time after 1970
pub fn start_time() -> u64 {
    started() as u64
}

fn started() -> f64 {
    static STARTED: OnceLock<f64> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let since_boot = stat().and_then(|fields| fields.get(START_TIME).copied());
        let boot = number_after("/proc/stat", "btime ");
        since_boot.zip(boot).map_or_else(now, |(ticks, boot)| boot + ticks / TICKS_PER_SECOND)
    })
}

// Field indexes after the program's name, beginning with the state (field 3 of proc_pid_stat(5)).
const UTIME: usize = 11;
const STIME: usize = 12;
const START_TIME: usize = 19;
const VSIZE: usize = 20;

/// The fields after the name, which may contain anything; the state is at index 0.
fn stat() -> Option<Vec<f64>> {
    stat_fields(&fs::read_to_string("/proc/self/stat").ok()?)
}

fn stat_fields(text: &str) -> Option<Vec<f64>> {
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_ascii_whitespace().map(|field| field.parse().unwrap_or_default()).collect())
}

fn number_after(file: &str, start: &str) -> Option<f64> {
    number_in(&fs::read_to_string(file).ok()?, start)
}

fn number_in(text: &str, start: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(start))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn resident() -> Option<f64> {
    number_after("/proc/self/status", "VmRSS:").map(|kilobytes| kilobytes * 1024.0)
}

#[allow(clippy::cast_precision_loss)] // not that many files
fn open_files() -> Option<f64> {
    // Excludes the descriptor of the folder itself.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

/// A soft limit. Go exposes "unlimited" as the greatest integer.
fn limit(name: &str) -> Option<f64> {
    limit_in(&fs::read_to_string("/proc/self/limits").ok()?, name)
}

#[allow(clippy::cast_precision_loss)]
fn limit_in(text: &str, name: &str) -> Option<f64> {
    let soft = text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX as f64) } else { soft.parse().ok() }
}

/// Bytes received and sent in this network namespace.
fn network() -> Option<(f64, f64)> {
    octets(&fs::read_to_string("/proc/self/net/netstat").ok()?)
}

fn octets(text: &str) -> Option<(f64, f64)> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted| {
        let at = names.split_ascii_whitespace().position(|name| name == wanted)?;
        values.split_ascii_whitespace().nth(at)?.parse().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

/// Parses a text as each of the files read here, for fuzzing.
pub(crate) fn fuzz(text: &str) {
    let _ = (stat_fields(text), number_in(text, "btime "), number_in(text, "VmRSS:"));
    let _ = (limit_in(text, "Max open files"), limit_in(text, "Max address space"), octets(text));
}
