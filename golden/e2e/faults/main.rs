//! Faults, injected for real against the real binary under live traffic; prints golden/faults/README.md's table.
//!
//! Each fault is a row in `faults/kinds/`: a name, what is injected, a function that injects it, and what may come of it.
//! A row fails if more is lost than it allows or recovery takes longer than its limit.
//!
//! `FAULTS=all`, or a name or a part of names; without it a sample. `KUBE_PROXY=path`: another binary. `BESIDE=path`: a
//! second one, for which each fault is injected too; it fails no test. `KILLS=n`: how often the proxy is killed in the
//! middle of a sync. `MODE=nftables`: that mode, where a row is possible in it.

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

/// How long traffic is measured before a fault and after the recovery.
const SETTLED: Duration = Duration::from_millis(500);
/// How long the recovery of the second proxy is waited for, to have a figure where it takes longer than it may.
const LONGEST: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    // cargo's own arguments (`--list`, a filter) are those of another harness.
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

/// The binaries: the one under test, and the one beside it if there is one.
fn proxies() -> Vec<PathBuf> {
    let under_test = std::env::var_os("KUBE_PROXY").unwrap_or_else(|| env!("CARGO_BIN_EXE_kube-proxy").into());
    let beside = std::env::var_os("BESIDE").filter(|path| !path.is_empty());
    [Some(under_test), beside].into_iter().flatten().map(Into::into).collect()
}

/// The faults that the environment asks for, and that are possible in its mode.
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

/// Injects one fault into one proxy. The cells of its row, and whether it passes.
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
