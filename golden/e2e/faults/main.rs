//! Injects faults into the real binary under live traffic; prints the table of golden/faults/README.md.
//!
//! Each fault is a row in `faults/kinds/`: name, description, injecting function, and limits. A row fails if more
//! connections are lost or recovery takes longer than its limits.
//!
//! Environment: `FAULTS=all` or a part of names (default: a sample), `KUBE_PROXY=path` for another binary,
//! `BESIDE=path` for a second one, which is measured and fails no test, `KILLS=n` for the number of kills during a
//! sync, `MODE=nftables` for that mode.

mod kinds;
mod own_kernel;
mod report;
mod rig;
mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kinds::{Fault, When};
use report::Report;
use rig::Rig;
use traffic::Traffic;

/// The time that traffic is measured before a fault and after the recovery.
const SETTLED: Duration = Duration::from_millis(500);
/// The timeout for the recovery of the second proxy, to measure it beyond its limit.
const LONGEST: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    // cargo's own arguments (`--list`, a filter) belong to another harness.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let proxies = proxies();
    println!("{}", Report::header(proxies.len()));
    let mut failed = Vec::new();
    for fault in chosen() {
        if fault.needs_own_kernel && !own_kernel::is_this() {
            if !own_kernel::passes_there(&fault, proxies.len()) {
                failed.push(fault.name);
            }
            continue;
        }
        let waits = [fault.within, fault.within.max(LONGEST)];
        let outcomes: Vec<(String, bool)> =
            proxies.iter().zip(waits).map(|(proxy, wait)| measure(&fault, proxy, wait)).collect();
        let cells: String = outcomes.iter().map(|(cells, _)| cells.as_str()).collect();
        println!("{}{cells}|", Report::subject(&fault));
        if !outcomes[0].1 {
            failed.push(fault.name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// The binary under test, and the second one, if any.
fn proxies() -> Vec<PathBuf> {
    let under_test = std::env::var_os("KUBE_PROXY").unwrap_or_else(|| env!("CARGO_BIN_EXE_kube-proxy").into());
    let beside = std::env::var_os("BESIDE").filter(|path| !path.is_empty());
    [Some(under_test), beside].into_iter().flatten().map(Into::into).collect()
}

/// The selected faults that are possible in the mode.
fn chosen() -> Vec<Fault> {
    let wish = std::env::var("FAULTS").unwrap_or_default();
    let mut faults = kinds::all();
    let is_a_name = faults.iter().any(|fault| fault.name == wish);
    faults.retain(|fault| {
        let is_wished = match (wish.as_str(), fault.when) {
            (name, _) if is_a_name => fault.name == name,
            (_, When::ByName) => false,
            ("", when) => when == When::InSample,
            ("all", _) => true,
            (part, _) => fault.name.contains(part),
        };
        is_wished && (fault.in_nftables || !rig::is_nftables())
    });
    faults
}

/// Injects a fault into a proxy; returns the cells of its row and whether it passed.
fn measure(fault: &Fault, proxy: &Path, wait: Duration) -> (String, bool) {
    match catch_unwind(AssertUnwindSafe(|| run(fault, proxy, wait))) {
        Ok(report) => (report.cells(fault), report.problems(fault).is_empty()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            (Report::no_figures(text.unwrap_or("failed")), false)
        }
    }
}

fn run(fault: &Fault, proxy: &Path, wait: Duration) -> Report {
    let mut rig = Rig::new(fault.flavour, proxy);
    rig.start();
    let traffic = Traffic::start(&rig.cluster, fault.pause);
    let watch = rig.watch_health();
    std::thread::sleep(SETTLED);
    (fault.inject)(&mut rig);
    let ended = Instant::now();
    let recovered = rig.recovers(wait);
    let recovery = recovered.then(|| ended.elapsed());
    std::thread::sleep(SETTLED);
    rig.note_end();
    let report =
        Report { traffic: traffic.stop(), recovery, wait, health: watch.stop(), notes: std::mem::take(&mut rig.notes) };
    for problem in report.problems(fault) {
        eprintln!("{} ({}): {problem}\n{}", fault.name, proxy.display(), rig.log_tail());
    }
    report
}
