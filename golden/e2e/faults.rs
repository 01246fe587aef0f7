//! Faults, injected for real against the real binary under live traffic; prints golden/faults/README.md's table.
//!
//! Each fault is a row in `faults/kinds/`: a name, what is injected, a function that injects it, and what may come of it.
//! A row fails if more is lost than it allows or recovery takes longer than its limit.
//!
//! `FAULTS=all`, or a part of a name; without it a sample. `KUBE_PROXY=path`: another binary. `KILLS=n`: how often the
//! proxy is killed in the middle of a sync. `MODE=nftables`: that mode, where a row is possible in it.

#[path = "faults/kinds/mod.rs"]
mod kinds;
#[path = "faults/report.rs"]
mod report;
#[path = "faults/rig.rs"]
mod rig;
#[path = "faults/traffic.rs"]
mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kinds::Fault;
use report::Report;
use rig::Rig;
use traffic::Traffic;

/// How long traffic is measured before a fault and after the recovery.
const SETTLED: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let chosen = std::env::var("FAULTS").unwrap_or_default();
    let is_chosen = |fault: &&Fault| match chosen.as_str() {
        "" => fault.in_sample,
        "all" => true,
        part => fault.name.contains(part),
    };
    // cargo's own arguments (`--list`, a filter) are those of another harness.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    println!("{}", Report::HEADER);
    let mut all = kinds::all();
    all.retain(|fault| fault.in_nftables || !rig::is_nftables());
    let failed: Vec<&str> =
        all.iter().filter(is_chosen).filter(|fault| !passes(fault)).map(|fault| fault.name).collect();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Runs one fault and prints its row.
fn passes(fault: &Fault) -> bool {
    match catch_unwind(AssertUnwindSafe(|| run(fault))) {
        Ok(report) => {
            println!("{}", report.row(fault));
            report.problems(fault).is_empty()
        }
        Err(_) => {
            println!("| {} | {} | failed | | | | |", fault.name, fault.injected);
            false
        }
    }
}

fn run(fault: &Fault) -> Report {
    let mut rig = Rig::new(fault.flavour);
    rig.start();
    let (injected, health) = {
        let traffic = Traffic::start(&rig.cluster);
        let watch = rig.watch_health();
        std::thread::sleep(SETTLED);
        (fault.inject)(&mut rig);
        let ended = Instant::now();
        let recovered = rig.recovers(fault.within);
        let recovery = recovered.then(|| ended.elapsed());
        std::thread::sleep(SETTLED);
        ((traffic.stop(), recovery), watch.stop())
    };
    let (traffic, recovery) = injected;
    let report = Report { traffic, recovery, health };
    for problem in report.problems(fault) {
        eprintln!("{}: {problem}\n{}", fault.name, rig.log_tail());
    }
    report
}
