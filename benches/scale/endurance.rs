//! The endurance run: changes with a fault or a reload every few seconds, after which the process must not have grown.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use golden::apiserver::{End, Fault, Requests};
use golden::load::change;
use golden::node::{METRICS, get};
use serde_json::Value;

use crate::load;
use crate::process::{self, Cpu};
use crate::rig::Rig;

/// The rate of changes.
const CHANGES_PER_SECOND: u32 = 20;
/// The time from one fault's repair to the next fault.
const FAULT_PAUSE: Duration = Duration::from_secs(10);
/// How long the repair of a fault may take.
const REPAIR_LIMIT: Duration = Duration::from_secs(180);
/// The time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// The allowed ratio of peak memory in the last quarter to that in the second quarter.
const MAX_MEMORY_GROWTH: f64 = 1.1;
/// The allowed growth of descriptors and threads, for requests that are open by chance.
const MAX_COUNT_GROWTH: u64 = 8;
/// Services that are deleted and created again at a time.
const REPLACED: u32 = 100;

/// A fault or reload: its name, and a function that injects it.
type FaultKind = (&'static str, fn(&Rig));

const FAULTS: [FaultKind; 12] = [
    ("nft flush ruleset", |rig| drop(rig.netns().run("nft flush ruleset"))),
    ("watches end", |rig| rig.api().end_watches(End::Clean)),
    ("watches reset", |rig| rig.api().end_watches(End::Reset)),
    ("410 Expired", |rig| {
        rig.api().expire_history();
        rig.api().end_watches(End::Clean);
    }),
    ("API server down 3 s", |rig| {
        rig.api().down();
        sleep(Duration::from_secs(3));
        rig.api().up();
    }),
    ("429 to 6 requests", |rig| {
        rig.api().inject(Fault::TooManyRequests { retry_after: 1 }.on(Requests::All).times(6));
        rig.api().end_watches(End::Clean);
    }),
    ("500 to 6 requests", |rig| {
        rig.api().fail_next(6, 500);
        rig.api().end_watches(End::Clean);
    }),
    ("garbage in a watch", |rig| rig.api().send_bytes("EndpointSlice", b"\xff\xfe{not an event")),
    ("SIGSTOP for 3 s", |rig| {
        let signal = |name: &str| drop(rig.netns().run(&format!("kill -{name} {}", rig.pid())));
        signal("STOP");
        sleep(Duration::from_secs(3));
        signal("CONT");
    }),
    ("node address comes and goes", |rig| {
        rig.netns().run("ip addr add 192.168.50.200/32 dev lo");
        sleep(Duration::from_millis(500));
        rig.netns().run("ip addr del 192.168.50.200/32 dev lo");
    }),
    ("Services deleted and made again", |rig| {
        let names: Vec<String> = (0..REPLACED).map(|number| format!("svc-{:05}", number * 7)).collect();
        let all: Vec<Option<Value>> = names.iter().map(|name| rig.api().get("Service", "scale", name)).collect();
        for name in &names {
            rig.api().delete("Service", "scale", name);
        }
        sleep(Duration::from_secs(1));
        for service in all.into_iter().flatten() {
            rig.api().apply(service);
        }
    }),
    ("100 scrapes, 20 pages of /debug/rules", |rig| {
        rig.netns().enter(|| {
            for number in 0..100 {
                let _ = get(METRICS, "/metrics");
                if number % 5 == 0 {
                    let _ = get(METRICS, "/debug/rules?service=probe/probe");
                }
            }
        });
    }),
];

/// The size of a process.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Resident kilobytes.
    memory: u64,
    descriptors: u64,
    threads: u64,
}

impl Sample {
    fn of(pid: u32) -> Self {
        Self {
            memory: process::memory(pid).0,
            descriptors: process::entries(pid, "fd"),
            threads: process::entries(pid, "task"),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MB, {} fds, {} threads", self.memory as f64 / 1e3, self.descriptors, self.threads)
    }
}

/// The result of an endurance run.
#[derive(Debug)]
pub struct EnduranceFigures {
    services: u32,
    seconds: u64,
    changes: u32,
    faults: u32,
    /// The longest repair and the fault it followed.
    slowest: (Duration, &'static str),
    samples: Vec<Sample>,
    /// After the last repair, when the proxy is idle.
    idle: Sample,
    cpu: Cpu,
}

/// Runs a proxy that has programmed its load for this many seconds.
///
/// # Errors
/// A fault that was not repaired in time, or growth.
pub fn run(rig: &mut Rig, services: u32, seconds: u32) -> Result<EnduranceFigures, String> {
    rig.wait_for_traffic()?;
    rig.wait_idle();
    let (pid, begun) = (rig.pid(), Instant::now());
    let (before, end) = (Cpu::of(pid), begun + Duration::from_secs(seconds.into()));
    let mut figures = EnduranceFigures {
        services,
        seconds: seconds.into(),
        changes: 0,
        faults: 0,
        slowest: (Duration::ZERO, "none"),
        samples: Vec::new(),
        idle: Sample::default(),
        cpu: before,
    };
    for (name, fault) in FAULTS.into_iter().cycle() {
        figures.change_until((Instant::now() + FAULT_PAUSE).min(end), rig, services);
        if Instant::now() >= end {
            break;
        }
        fault(rig);
        figures.faults += 1;
        let repair = figures.repair(rig, name)?;
        if repair > figures.slowest.0 {
            figures.slowest = (repair, name);
        }
    }
    rig.wait_idle();
    figures.idle = Sample::of(pid);
    figures.cpu = Cpu::of(pid).since(before);
    let problems = figures.growth();
    if problems.is_empty() { Ok(figures) } else { Err(format!("{figures}\n{}", problems.join("\n"))) }
}

impl EnduranceFigures {
    /// The header of the table of rows.
    pub const HEADER: &str = "| services x 10 | minutes | changes | faults and reloads | slowest repair | 2nd quarter, at most \
        | last quarter, at most | idle at the end | CPU: proxy + tools |\n|---|---|---|---|---|---|---|---|---|";

    /// Changes slices at [`CHANGES_PER_SECOND`] and takes samples.
    fn change_until(&mut self, end: Instant, rig: &Rig, services: u32) {
        let mut sampled = Instant::now();
        while Instant::now() < end {
            // Far apart, so that the changes of one sync are not neighbours.
            change(rig.api(), self.changes.wrapping_mul(7919) % services);
            self.changes += 1;
            if sampled.elapsed() >= SAMPLE_INTERVAL {
                self.samples.push(Sample::of(rig.pid()));
                sampled = Instant::now();
            }
            sleep(Duration::from_secs(1) / CHANGES_PER_SECOND);
        }
    }

    /// Moves the probed Service to its other endpoint and waits for traffic to reach that one.
    fn repair(&mut self, rig: &mut Rig, fault: &'static str) -> Result<Duration, String> {
        let begun = Instant::now();
        let turn = self.faults as usize % 2;
        rig.api().apply(load::slice(turn));
        rig.wait_for_turn(turn, begun + REPAIR_LIMIT)
            .map(|reached| reached - begun)
            .map_err(|why| format!("{self}\nfault {}, {fault}: {why}", self.faults))
    }

    fn quarter(&self, number: usize) -> Sample {
        let quarter = self.samples.len().div_ceil(4).max(1);
        self.samples.iter().skip(quarter * number).take(quarter).copied().fold(Sample::default(), Sample::max)
    }

    fn growth(&self) -> Vec<String> {
        let (early, late) = (self.quarter(1), self.quarter(3));
        let mut problems = Vec::new();
        if late.memory as f64 > early.memory as f64 * MAX_MEMORY_GROWTH {
            problems.push(format!("memory grew from {} to {} kB", early.memory, late.memory));
        }
        for (what, early, late) in
            [("descriptors", early.descriptors, late.descriptors), ("threads", early.threads, late.threads)]
        {
            if late > early + MAX_COUNT_GROWTH {
                problems.push(format!("{what} grew from {early} to {late}"));
            }
        }
        problems
    }
}

impl fmt::Display for EnduranceFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {:.0} | {} | {} ", self.services, self.seconds as f64 / 60.0, self.changes, self.faults)?;
        write!(f, "| {:.1} s ({}) ", self.slowest.0.as_secs_f64(), self.slowest.1)?;
        write!(f, "| {} | {} | {} ", self.quarter(1), self.quarter(3), self.idle)?;
        write!(f, "| {:.1} + {:.1} s |", self.cpu.own.as_secs_f64(), self.cpu.children.as_secs_f64())
    }
}
