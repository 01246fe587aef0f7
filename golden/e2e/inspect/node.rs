//! A node with a case's rules, and our commands run on it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use golden::case::{Case, Kind, Mode, cases};
use golden::flavour::Flavour;
use golden::lab::Lab;
use golden::proxy::config;
use netfilter::IpFamily;
use netfilter::kernel::{Host, SystemHost};
use proxier::iptables::{INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER};
use serde_json::Value;

/// A node, as recorded, and the objects that its rules should follow.
pub struct Node {
    pub lab: Lab,
    flavour: Flavour,
    pub objects: PathBuf,
    pub config: PathBuf,
    case: String,
}

impl Node {
    /// A node with the recorded rules of a case's first state.
    pub fn recorded(name: &str, flavour: Flavour) -> Self {
        let node = Self::empty(name, flavour);
        let case = case(name);
        for (family, kind) in IpFamily::ALL.into_iter().zip([Kind::Iptables, Kind::Ip6tables]) {
            node.restore(family, flavour, &case.expected(Mode::Iptables, 0, kind));
        }
        node
    }

    /// A node with the tables of nf_tables that were recorded of the real one in a case's first state.
    pub fn recorded_tables(name: &str) -> Self {
        let node = Self::bare(Mode::Nftables, name, Flavour::Nft);
        node.nft(&case(name).recorded_tables(0));
        node
    }

    /// A node with the tables that our proxy leaves in a case's first state. It does not run any more: it would mend what
    /// is edited.
    pub fn our_tables(name: &str) -> Self {
        let mut node = Self::bare(Mode::Nftables, name, Flavour::Nft);
        node.start_with(&[]);
        node.lab.stop().expect("it stops");
        node
    }

    /// Starts our proxy in nftables mode, and waits until both its tables are there.
    pub fn start_with(&mut self, flags: &[&str]) {
        let settings = config(Mode::Nftables, &case(&self.case).config);
        let objects = self.objects.clone();
        self.lab.start_with(env!("CARGO_BIN_EXE_kube-proxy").as_ref(), &settings, &objects, flags);
        self.lab.wait_healthy().expect("healthy");
        let started = Instant::now();
        let is_there = |family: &str| self.lab.node().try_run(&format!("nft list table {family} kube-proxy"));
        while ["ip", "ip6"].iter().any(|family| !is_there(family).status.success()) {
            assert!(started.elapsed() < Duration::from_secs(20), "the proxy makes no tables");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A node without rules, and the case's objects.
    pub fn empty(name: &str, flavour: Flavour) -> Self {
        Self::bare(Mode::Iptables, name, flavour)
    }

    /// The same, for a proxy in that mode.
    pub fn bare(mode: Mode, name: &str, flavour: Flavour) -> Self {
        let (mut lab, case) = (Lab::new(mode, flavour), case(name));
        lab.add_pods(&case.stored[0]);
        let (objects, config) = (lab.dir().join("as-stored.yaml"), lab.dir().join("as-configured.yaml"));
        std::fs::copy(&case.stored[0], &objects).expect("the objects");
        let text = format!("mode: {mode}\nhostnameOverride: node-a\n{}", case.config);
        std::fs::write(&config, text).expect("the configuration");
        lab.node().enter(|| {
            for counter in [INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER] {
                SystemHost.ensure_counter(counter).expect("nfacct");
            }
        });
        let node = Self { lab, flavour, objects, config, case: name.to_owned() };
        node.sysctl("net/ipv4/ip_forward", 1);
        node.sysctl("net/ipv6/conf/all/forwarding", 1);
        node.lab.node().run("ip -6 route add default dev eth0");
        node
    }

    pub fn sysctl(&self, name: &str, value: i64) {
        self.lab.node().enter(|| SystemHost.set_sysctl(name, value)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    pub fn restore(&self, family: IpFamily, flavour: Flavour, text: &str) {
        let mut tool = self.lab.node().command(&format!("{}-{flavour}-restore", family.iptables()));
        tool.arg("--noflush").env("XTABLES_LOCKFILE", self.lab.dir().join("xtables.lock")).stdin(Stdio::piped());
        let mut tool = tool.stderr(Stdio::piped()).spawn().expect("iptables-restore");
        tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        let output = tool.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Has nft read these lines, as one.
    pub fn nft(&self, text: &str) {
        let mut tool = self.lab.node().command("nft");
        let mut tool = tool.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nft");
        tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        let output = tool.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs iptables with these words.
    pub fn iptables(&self, words: &str) {
        self.lab.node().run(&format!("iptables-{} -w 5 {words}", self.flavour));
    }

    /// Runs `kube-proxy` with these words, split at blanks.
    pub fn run(&self, words: &str) -> Output {
        let mut command = self.lab.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
        command.args(words.split_whitespace()).stdin(Stdio::null()).env_remove("NO_COLOR").env("TERM", "xterm");
        command.output().expect("kube-proxy runs")
    }

    /// The same with the objects and the configuration.
    pub fn run_with_objects(&self, words: &str) -> Output {
        self.run(&format!("{words} --config {} --objects {}", self.config.display(), self.objects.display()))
    }

    /// The same with the objects of an API server.
    pub fn run_with_api(&self, words: &str, url: &str) -> Output {
        self.run(&format!("{words} --config {} --master {url}", self.config.display()))
    }

    /// What `dump -o json` tells, with objects.
    pub fn dump(&self) -> Value {
        json(&self.run_with_objects("dump -o json"))
    }

    /// The causes that a diagnosis finds, the certain ones first, and its status.
    pub fn diagnose(&self, words: &str) -> (Vec<String>, i32) {
        diagnosis(&self.run_with_objects(&format!("diagnose -o json {words}")))
    }
}

pub fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

pub fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// What a command printed, with single spaces.
pub fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
}

pub fn diagnosis(output: &Output) -> (Vec<String>, i32) {
    let findings = json(output)["findings"].as_array().cloned().unwrap_or_default();
    let cause = |finding: &Value| {
        let suspect = if finding["certain"] == true { "" } else { "?" };
        format!("{}{suspect}", finding["cause"].as_str().unwrap_or_default())
    };
    let mut causes: Vec<String> = findings.iter().map(cause).collect();
    causes.dedup();
    (causes, output.status.code().unwrap_or(-1))
}
