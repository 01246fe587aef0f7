//! The soak: many slice changes per second, after which memory and metrics are checked.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use golden::load::{Account, change};
use golden::node::{METRICS, get, sum};

use crate::process::{self, Cpu};
use crate::rig::Rig;

/// The rate of changes.
const CHANGES_PER_SECOND: u32 = 100;
/// How long after the last change everything must be programmed.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(60);
/// Seconds after which memory must not grow.
const SETTLE_SECONDS: usize = 10;
/// The allowed ratio of the least memory in the last ten seconds to the most in the ten seconds after settling. A full
/// check of the rules delays changes, and its memory is not returned to the last page.
const MAX_MEMORY_GROWTH: f64 = 1.1;

/// The result of a soak.
#[derive(Debug)]
pub struct SoakFigures {
    services: u32,
    changes: u32,
    /// Resident kilobytes, each second.
    memory: Vec<u64>,
    cpu: Cpu,
    syncs: f64,
    latency: f64,
    late: Duration,
}

/// Soaks a proxy that has programmed its load.
///
/// # Errors
/// Every failed check.
pub fn run(rig: &mut Rig, services: u32, seconds: u32) -> Result<SoakFigures, String> {
    rig.wait_for_traffic()?;
    rig.wait_idle();
    let scrape = || rig.netns().enter(|| get(METRICS, "/metrics")).map(|(_, text)| text).map_err(|e| e.to_string());
    let account = Account::open(scrape()?);
    let (pid, before) = (rig.pid(), Cpu::of(rig.pid()));
    let (begun, changes, mut memory) = (Instant::now(), CHANGES_PER_SECOND * seconds, Vec::new());
    for number in 0..changes {
        // Far apart, so that the changes of one sync are not neighbours.
        change(rig.api(), number * 7919 % services);
        if number % CHANGES_PER_SECOND == CHANGES_PER_SECOND - 1 {
            memory.push(process::memory(pid).0);
        }
        sleep(
            (begun + Duration::from_secs(1) / CHANGES_PER_SECOND * (number + 1))
                .saturating_duration_since(Instant::now()),
        );
    }
    let (sent, mut after) = (Instant::now(), scrape()?);
    while !account.is_done(&after, changes) {
        if sent.elapsed() > COMPLETION_TIMEOUT {
            let differences = account.differences(&after, changes).join("\n");
            return Err(format!("not done {COMPLETION_TIMEOUT:?} after the last change:\n{differences}"));
        }
        sleep(Duration::from_millis(50));
        after = scrape()?;
    }
    let late = sent.elapsed();
    let mut problems = account.differences(&after, changes);
    let (settled, last) =
        (memory.iter().skip(SETTLE_SECONDS).take(SETTLE_SECONDS), memory.iter().rev().take(SETTLE_SECONDS));
    let (early, end) = (settled.max().copied().unwrap_or_default(), last.min().copied().unwrap_or_default());
    if end as f64 > early as f64 * MAX_MEMORY_GROWTH {
        problems.push(format!("memory grew from {early} kB to {end} kB: {memory:?}"));
    }
    let growth = |name: &str| account.growth(&after, &format!("kubeproxy_{name}"));
    let cpu = Cpu::of(pid).since(before);
    let syncs = growth("sync_proxy_rules_duration_seconds_count");
    let latency = growth("network_programming_duration_seconds_sum") / f64::from(changes);
    let (reported, found) = (sum(&after, "process_resident_memory_bytes") / 1024.0, process::memory(pid).0 as f64);
    if (reported / found - 1.0).abs() > 0.1 {
        problems.push(format!("process_resident_memory_bytes says {reported} kB, the kernel {found} kB"));
    }
    let figures = SoakFigures { services, changes, memory, cpu, syncs, latency, late };
    if problems.is_empty() { Ok(figures) } else { Err(format!("{figures}\n{}", problems.join("\n"))) }
}

impl SoakFigures {
    /// The header of the table of rows.
    pub const HEADER: &str = "| services x 10 | changes (100/s) | syncs | mean programming latency | done after the last change \
        | CPU: proxy + tools | resident after 1, 10, 20 s, at the end (peak) |\n|---|---|---|---|---|---|---|";
}

impl fmt::Display for SoakFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |second: usize| self.memory.get(second - 1).copied().unwrap_or_default() as f64 / 1e3;
        write!(f, "| {} | {} | {} | {:.0} ms ", self.services, self.changes, self.syncs, self.latency * 1e3)?;
        write!(f, "| {:.2} s ", self.late.as_secs_f64())?;
        write!(f, "| {:.1} + {:.1} s ", self.cpu.own.as_secs_f64(), self.cpu.children.as_secs_f64())?;
        let peak = self.memory.iter().copied().max().unwrap_or_default() as f64 / 1e3;
        write!(f, "| {:.1}, {:.1}, {:.1}, {:.1} MB ({peak:.1}) |", at(1), at(10), at(20), at(self.memory.len().max(1)))
    }
}
