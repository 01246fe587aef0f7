//! Measures a kube-proxy binary, ours or upstream's, against an API server with many Services.
//!
//! Prints how long a cold start takes until traffic flows, its CPU time, resident memory, and latency and CPU time of
//! one-endpoint changes. README.md in the parent folder lists the environment variables. Needs root, for a network
//! namespace.

mod attached;
mod endurance;
mod load;
mod process;
mod rig;
mod soak;
mod traffic;

use std::time::Duration;

use golden::flavour::Flavour;

use self::rig::{Rig, RigFigures};

fn main() {
    // `cargo test --all-targets` runs benches too, but without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("scale: run it with cargo bench --bench scale");
        return;
    }
    let mut options = Options::from_env();
    for (name, header, run) in [
        ("soak", soak::SoakFigures::HEADER, soak as Long),
        ("endurance", endurance::EnduranceFigures::HEADER, endure as Long),
    ] {
        if std::env::args().any(|argument| argument == name) {
            return long(&mut options, header, run);
        }
    }
    if std::env::args().any(|argument| argument == "attached") {
        println!("{}", attached::AttachFigures::HEADER);
        println!("{}", attached::measure(&options).map_or_else(|why| why, |figures| figures.to_string()));
        return;
    }
    println!("{}", RigFigures::HEADER);
    for flavour in &options.flavours {
        for &services in &options.services {
            let outcome = Rig::start(&options, *flavour, services).and_then(|mut rig| rig.measure());
            match outcome {
                Ok(figures) => println!("{figures}"),
                Err(why) => println!("| {services} | {} | {why} |", options.label(*flavour)),
            }
        }
    }
}

/// A measurement that takes minutes: returns a row, or the failed checks.
type Long = fn(&mut Rig, u32, u32) -> Result<String, String>;

fn soak(rig: &mut Rig, services: u32, seconds: u32) -> Result<String, String> {
    soak::run(rig, services, seconds).map(|figures| figures.to_string())
}

fn endure(rig: &mut Rig, services: u32, seconds: u32) -> Result<String, String> {
    endurance::run(rig, services, seconds).map(|figures| figures.to_string())
}

/// Measures the largest size only, unless another is set. Exits with an error if a check fails.
fn long(options: &mut Options, header: &str, run: Long) {
    options.services = options.services.last().copied().into_iter().collect();
    println!("{header}");
    let mut failed = false;
    for flavour in &options.flavours {
        for &services in &options.services {
            let outcome =
                Rig::start(options, *flavour, services).and_then(|mut rig| run(&mut rig, services, options.seconds));
            failed |= outcome.is_err();
            println!("{}: {}", options.label(*flavour), outcome.unwrap_or_else(|why| why));
        }
    }
    if failed {
        std::process::exit(1);
    }
}

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// The binary.
    pub binary: String,
    /// Additional arguments.
    pub arguments: Vec<String>,
    /// The proxy's mode.
    pub mode: String,
    /// Flavours of iptables; one for a mode that does not use it.
    pub flavours: Vec<Flavour>,
    /// Numbers of Services.
    pub services: Vec<u32>,
    /// The number of measured changes.
    pub changes: u32,
    /// The duration of a soak or an endurance run.
    pub seconds: u32,
    /// How long a cold start may take.
    pub limit: Duration,
}

impl Options {
    /// The mode or flavour in the table.
    pub fn label(&self, flavour: Flavour) -> String {
        if self.mode == "iptables" { flavour.to_string() } else { self.mode.clone() }
    }

    fn from_env() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &str, default| variable(name).map_or(default, |n| n.parse().expect("a number"));
        let flavour = variable("FLAVOUR");
        let mode = variable("MODE").unwrap_or_else(|| "iptables".to_owned());
        let flavours = Flavour::ALL.into_iter().take(if mode == "nftables" { 1 } else { usize::MAX });
        let services = variable("SERVICES").unwrap_or_else(|| "100,1000,10000".to_owned());
        Self {
            binary: variable("KUBE_PROXY")
                .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/kube-proxy").to_owned()),
            arguments: variable("ARGUMENTS")
                .map_or_else(Vec::new, |all| all.split_whitespace().map(str::to_owned).collect()),
            mode,
            flavours: flavours.filter(|f| flavour.as_ref().is_none_or(|wanted| *wanted == f.to_string())).collect(),
            services: services.split(',').map(|n| n.parse().expect("a number of Services")).collect(),
            changes: number("CHANGES", 20),
            seconds: number("SOAK", 60),
            limit: Duration::from_secs(number("LIMIT", 400).into()),
        }
    }
}
