//! The proxy of the demo: the program's main job, in a thread, in the node's namespace.
//!
//! In: the examples' folder. Out: a proxy at work, and what it has made of the examples.
//! Must not know: how the demo is told. It is a composition root as `run.rs` is one, and so may look at the kernel.

use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{FlavourChoice, detect_flavour};
use proxier::xtables::FLAVOUR_HINTS;

use super::example::Example;
use super::rules::NatRules;
use crate::cli;
use crate::run;

/// How long the rules may take to follow the objects, on a machine with other things to do.
const LIMIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(30);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    ended: Receiver<Result<(), String>>,
    /// Which iptables.
    pub choice: FlavourChoice,
    /// The families that it has to serve.
    pub families: Vec<IpFamily>,
}

impl Proxy {
    /// The command line.
    pub fn arguments(example: &Example) -> Vec<String> {
        let objects = format!("--objects={}", example.folder.display());
        let node = format!("--hostname-override={}", example.node);
        let mut arguments = vec!["kube-proxy".to_owned(), objects, node];
        arguments.extend(["--detect-local-mode=NodeCIDR", "--nodeport-addresses=primary"].map(str::to_owned));
        arguments
    }

    /// Starts it; of the kernel's families those count for which the host has the tools.
    pub fn start(example: &Example, families: &[IpFamily]) -> Result<Self, String> {
        let choice = detect_flavour(&FLAVOUR_HINTS);
        let works = |family: &&IpFamily| **family == IpFamily::V4 || NatRules::read(&choice, **family).is_ok();
        let families = families.iter().filter(works).copied().collect();
        // The size of the connection table is the host's, even if it is set from here.
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

    /// Waits until the rules of a Service port lead to so many endpoints in a family. Returns the rules.
    pub fn wait(&self, family: IpFamily, service_port: &str, endpoints: usize) -> Result<NatRules, String> {
        let begun = Instant::now();
        loop {
            match self.ended.try_recv() {
                Err(TryRecvError::Empty) => {}
                Ok(Err(error)) => return Err(format!("the proxy ended: {error}")),
                Ok(Ok(())) | Err(TryRecvError::Disconnected) => return Err("the proxy ended".to_owned()),
            }
            // A table that is being changed may be unreadable for a moment.
            let rules = NatRules::read(&self.choice, family);
            let found = rules.as_ref().map(|rules| rules.destinations(service_port).len());
            if found == Ok(endpoints) {
                return rules;
            }
            if begun.elapsed() > LIMIT {
                let found = found.map_or_else(Clone::clone, |found| format!("{found}"));
                return Err(format!(
                    "after {LIMIT:?} the {family} rules of {service_port} lead to {found} endpoints, not to {endpoints}"
                ));
            }
            std::thread::sleep(PAUSE);
        }
    }
}
