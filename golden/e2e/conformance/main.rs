//! Runs every conformance case against the real binary and kernel, in one mode and both iptables flavours.
//!
//! Prints a diff for each failing case and a total.
//!
//! Environment: MODE=iptables or ipvs (which needs a kernel with IPVS), CASES=regex of case names, FLAVOUR=nft, legacy
//! or both, CASES_DIR=another folder of cases, KUBE_PROXY=another binary, JOBS=number of cases at a time.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use golden::case::{Case, KernelState, Kind, Mode, cases_in, differences, folder};
use golden::diff::unified;
use golden::flavour::Flavour;
use golden::lab::Lab;
use golden::proxy::config;

mod relabelled;

/// The maximum number of diff lines for each file.
const DIFF_LINES: usize = 60;
/// The time that rules must stay unchanged after a step that changes nothing.
const NO_CHANGE: Duration = Duration::from_millis(400);

/// One case in one flavour.
struct Job {
    case: Case,
    mode: Mode,
    flavour: Flavour,
    /// The reason why the recording is not expected here.
    difference: Option<String>,
}

impl Job {
    fn name(&self) -> String {
        format!("{}/{} ({})", self.case.name, self.mode, self.flavour)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test -- --list` queries every test binary; `cargo test NAME` means other tests unless NAME is this one.
    if arguments.iter().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let asked = |name: &str| filters.is_empty() || filters.iter().any(|f| format!("conformance {name}").contains(*f));
    let jobs: Vec<Job> = jobs().into_iter().filter(|job| asked(&job.name())).collect();
    if jobs.is_empty() {
        println!("conformance: no case ran");
        return if filters.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let started = Instant::now();
    let failed = run_all(&jobs);
    println!("{} passed, {failed} failed ({:.0?})", jobs.len() - failed, started.elapsed());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn jobs() -> Vec<Job> {
    let variable = |name: &str| std::env::var(name).ok();
    let wanted = regex::Regex::new(&variable("CASES").unwrap_or_default()).expect("CASES is a regex");
    let flavours = match variable("FLAVOUR").as_deref() {
        None | Some("both") => Flavour::ALL.to_vec(),
        Some(name) => {
            let known = Flavour::ALL.into_iter().find(|f| f.to_string() == name);
            vec![known.unwrap_or_else(|| panic!("FLAVOUR is nft, legacy or both, not {name}"))]
        }
    };
    let mode = match variable("MODE").as_deref() {
        None => Mode::Iptables,
        Some(name) => {
            let known = Mode::ALL.into_iter().find(|mode| mode.to_string() == name);
            known.unwrap_or_else(|| panic!("MODE is iptables or ipvs, not {name}"))
        }
    };
    let folder = variable("CASES_DIR").map_or_else(folder, PathBuf::from);
    let differences = differences(&folder);
    let mut jobs = Vec::new();
    for case in cases_in(&folder).into_iter().filter(|case| case.has(mode) && wanted.is_match(&case.name)) {
        let difference = differences.get(&format!("{}/{mode}", case.name));
        jobs.extend(flavours.iter().map(|flavour| Job {
            case: case.clone(),
            mode,
            flavour: *flavour,
            difference: difference.cloned(),
        }));
    }
    // The longest first, so that the last ones are short.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.case.size()));
    jobs
}

/// Runs a few jobs at a time; returns the number of failures.
fn run_all(jobs: &[Job]) -> usize {
    let binary = std::env::var_os("KUBE_PROXY").unwrap_or_else(|| env!("CARGO_BIN_EXE_kube-proxy").into());
    let binary = PathBuf::from(binary);
    // A case mostly waits for tools, so there are more jobs than CPUs.
    let default = std::thread::available_parallelism().map_or(2, |n| n.get() * 2);
    let threads = std::env::var("JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(default);
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = catch_unwind(AssertUnwindSafe(|| run(job, &binary)));
                    let result = result.unwrap_or_else(|_| Err("panicked, see above".to_owned()));
                    if let Err(why) = result {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("FAILED {}: {why}\n  ({})", job.name(), job.case.why);
                    }
                }
            });
        }
    });
    failed.into_inner()
}

fn run(job: &Job, binary: &std::path::Path) -> Result<(), String> {
    let case = &job.case;
    let mut lab = Lab::new(job.mode, job.flavour);
    let mut before: Option<KernelState> = None;
    for (step, objects) in case.stored.iter().enumerate() {
        let at = |why: String| format!("step {step:02}: {why}");
        if step == 0 {
            lab.start(binary, &config(job.mode, &case.config), objects);
            lab.wait_healthy().map_err(at)?;
        } else {
            lab.replace(objects);
        }
        before = Some(match &job.difference {
            // Before its first step a case does not show the difference.
            Some(reason) if step > 0 => different(job, reason, step, &mut lab).map_err(at)?,
            _ => same(job, step, before.as_ref(), &mut lab).map_err(at)?,
        });
    }
    lab.stop()?;
    let mut after = lab.read()?;
    let answering = after.insert(Kind::Http, before.as_ref().map(|s| s[&Kind::Http].clone()).unwrap_or_default());
    if answering.as_deref() != Some("listen \n") {
        return Err(format!("after the last step a health check still listens: {answering:?}"));
    }
    compare(before.as_ref().unwrap_or(&after), &after).map_err(|d| format!("changed after the last step: {d}"))?;
    let strays = lab.strays()?;
    if strays.is_empty() { Ok(()) } else { Err(format!("rules in the other flavour: {strays}")) }
}

/// After a step the kernel state must equal the recording.
fn same(job: &Job, step: usize, before: Option<&KernelState>, lab: &mut Lab) -> Result<KernelState, String> {
    let expected = job.case.expected_state(job.mode, step);
    let hold = if before == Some(&expected) { NO_CHANGE } else { Duration::ZERO };
    let state = lab.settle(hold, |state| *state == expected)?;
    compare(&expected, &state).map(|()| state)
}

/// Where upstream is wrong, a separate assertion applies.
fn different(job: &Job, reason: &str, step: usize, lab: &mut Lab) -> Result<KernelState, String> {
    if !job.case.name.starts_with("817-") {
        return Err(format!("no assertion for this documented difference: {reason}"));
    }
    let wanted = relabelled::ExpectedRules::read(&job.case.stored[step])?;
    let state = lab.settle(Duration::ZERO, |state| wanted.check(state).is_ok())?;
    wanted.check(&state).map(|()| state).map_err(|why| format!("{why} ({reason})"))
}

fn compare(expected: &KernelState, actual: &KernelState) -> Result<(), String> {
    let mut differing = BTreeMap::new();
    for (kind, expected) in expected {
        if *expected != actual[kind] {
            differing.insert(kind.name(), unified(expected, &actual[kind], DIFF_LINES));
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    let text: Vec<String> = differing.iter().map(|(kind, diff)| format!("\n  -- {kind}\n{diff}")).collect();
    Err(format!("differs (- expected, + actual){}", text.concat()))
}
