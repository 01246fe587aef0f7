//! Runs the proxy of the demo in a thread, in the node's namespace. Like `run.rs` it is a composition root.

use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{FlavourChoice, detect_flavour};
use proxier::xtables::FLAVOUR_HINTS;

use super::example::Example;
use super::rules::NatRules;
use crate::cli;
use crate::run;

/// How long the rules may take to follow the objects, on a busy machine.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(30);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    ended: Receiver<Result<(), String>>,
    /// The iptables flavour.
    pub choice: FlavourChoice,
    /// The families that it serves.
    pub families: Vec<IpFamily>,
}

impl Proxy {
    /// The command line.
    pub fn arguments(example: &Example) -> Vec<String> {
        let objects = format!("--objects={}", example.folder.display());
        let node = format!("--hostname-override={}", example.node);
        let mut arguments = vec!["kube-proxy".to_owned(), objects, node];
        // The demo reads the rules with the iptables programs, so they are there.
        let settings = ["--proxy-mode=iptables", "--iptables-backend=programs"];
        arguments.extend(settings.map(str::to_owned));
        arguments.extend(["--detect-local-mode=NodeCIDR", "--nodeport-addresses=primary"].map(str::to_owned));
        arguments
    }

    /// Starts the proxy for those of the kernel's families that the host has tools for.
    pub fn start(example: &Example, families: &[IpFamily]) -> Result<Self, String> {
        let choice = detect_flavour(&FLAVOUR_HINTS);
        let works = |family: &&IpFamily| **family == IpFamily::V4 || NatRules::read(&choice, **family).is_ok();
        let families = families.iter().filter(works).copied().collect();
        // The limit of the conntrack table is the host's, even if it is set in a namespace.
        let host = ["--conntrack-max-per-core=0", "--conntrack-min=0"].map(str::to_owned);
        let line = cli::parse(Self::arguments(example).into_iter().chain(host)).map_err(|stop| stop.text)?;
        let (sender, ended) = mpsc::channel();
        let body = move || {
            let _ = sender.send(run::run(&line));
        };
        let thread = std::thread::Builder::new().name("kube-proxy".to_owned()).spawn(body);
        thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { ended, choice, families })
    }

    /// Waits until the rules of a Service port have this many endpoints in a family. Returns the rules.
    pub fn wait(&self, family: IpFamily, service_port: &str, endpoints: usize) -> Result<NatRules, String> {
        let begun = Instant::now();
        loop {
            match self.ended.try_recv() {
                Err(TryRecvError::Empty) => {}
                Ok(Err(error)) => return Err(format!("the proxy ended: {error}")),
                Ok(Ok(())) | Err(TryRecvError::Disconnected) => return Err("the proxy ended".to_owned()),
            }
            // A table may be unreadable while it is being changed.
            let rules = NatRules::read(&self.choice, family);
            let found = rules.as_ref().map(|rules| rules.destinations(service_port).len());
            if found == Ok(endpoints) {
                return rules;
            }
            if begun.elapsed() > UPDATE_TIMEOUT {
                let found = found.map_or_else(Clone::clone, |found| format!("{found}"));
                return Err(format!(
                    "after {UPDATE_TIMEOUT:?} the {family} rules of {service_port} have {found} endpoints, expected {endpoints}"
                ));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
