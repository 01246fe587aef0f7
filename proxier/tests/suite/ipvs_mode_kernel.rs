//! IPVS mode in the real kernel: partial syncs end in the same state as a fresh start.
//!
//! Runs random operations and compares what ipvsadm, ipset, ip and iptables-save print with a namespace that was filled
//! at once. Shorter runs than with the fake. Needs root and a kernel with IPVS (`make test-ipvs`).

use std::process::Command;

use netfilter::IpFamily;
use netfilter::kernel::{DeviceName, Host, IptablesTool, Links, SystemIpSets, SystemIpvs, SystemLinks};
use netfilter::testing::FakeHost;
use proptest::test_runner::{Config, TestRunner};
use proxier::backend::Backend;
use proxier::ipvs::{self, Ipvs};
use proxier::model::IpvsConfig;
use proxier::testing::objects::config;

use crate::common::cluster::{Operation, operations};
use crate::common::real::{FLAVOURS, Real};
use crate::common::run::{Kernel, Run};

/// The kernel as IPVS mode sees it.
#[derive(Clone, Debug)]
struct Whole(Real);

impl Whole {
    fn new() -> Self {
        let native = std::env::var("IPTABLES_BACKEND").is_ok_and(|name| name == "native");
        let real = Real::new(FLAVOURS[if native { 2 } else { 0 }]);
        real.enter();
        let up = SystemLinks::open().expect("rtnetlink").set_up(DeviceName::new("lo"), true);
        up.expect("without a local address the kernel takes no real server");
        Self(real)
    }

    /// What a command line, split at blanks, prints there; nothing if it fails.
    fn prints(&self, line: &str) -> String {
        self.0.enter();
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().expect("a command")).args(words).output().expect("it can be run");
        if output.status.success() { String::from_utf8(output.stdout).expect("text") } else { String::new() }
    }

    fn sorted(&self, line: &str) -> String {
        let printed = self.prints(line);
        let mut lines: Vec<&str> =
            printed.lines().map(|line| line.split(" bucketsize").next().unwrap_or(line)).collect();
        lines.sort_unstable();
        lines.concat()
    }

    fn bound(&self) -> Vec<String> {
        let printed = self.prints("ip -o -4 addr show kube-ipvs0");
        let mut bound: Vec<String> =
            printed.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect();
        bound.sort_unstable();
        bound
    }
}

impl Kernel for Whole {
    fn tool(&self) -> Box<dyn IptablesTool> {
        self.0.tools()
    }

    fn host(&self) -> Box<dyn Host> {
        let host = FakeHost::default();
        host.set_addresses(["192.168.50.2", "127.0.0.1"].map(|ip| ip.parse().expect("an address")));
        Box::new(host)
    }

    fn mode(&self, tool: Box<dyn IptablesTool>) -> Box<dyn Backend> {
        self.0.enter();
        let kernel = ipvs::Kernel {
            tool,
            table: Box::new(SystemIpvs::load().expect("the kernel has it")),
            sets: Box::new(SystemIpSets::open().expect("the kernel has it")),
            links: Box::new(SystemLinks::open().expect("rtnetlink")),
            host: self.host(),
        };
        Box::new(Ipvs::new(IpFamily::V4, config(), IpvsConfig::default(), kernel).expect("a scheduler"))
    }

    fn fresh(&self) -> Self {
        Self::new()
    }

    fn damage(&self, nth: usize) -> bool {
        match nth % 3 {
            0 if !self.prints("ipvsadm -S -n").is_empty() => _ = self.prints("ipvsadm -C"),
            1 if !self.bound().is_empty() => {
                let address = &self.bound()[0];
                let _ = self.prints(&format!("ip addr del {address} dev kube-ipvs0"));
            }
            2 if self.prints("ipset save KUBE-CLUSTER-IP").contains("add ") => {
                let _ = self.prints("ipset flush KUBE-CLUSTER-IP");
            }
            _ => return false,
        }
        true
    }

    fn refuse(&self, _: Option<&str>, _: bool) {
        // The kernel does not take orders.
    }

    fn text(&self) -> String {
        let (servers, sets) = (self.sorted("ipvsadm -S -n"), self.sorted("ipset save"));
        format!("{servers}\n{sets}\n{:?}\n{}", self.bound(), self.0.saved())
    }

    fn is_atomic(&self) -> bool {
        false
    }
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn incremental_is_full_in_the_kernel() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 20, ..Config::default() });
    let result = runner.run(&operations(14, true), |operations| {
        history(operations);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

fn history(operations: Vec<Operation>) {
    let mut run = Run::new(Whole::new());
    let possible = |operation: &Operation| !matches!(operation, Operation::Refuse(_) | Operation::Failure);
    for operation in operations.into_iter().filter(possible).chain([Operation::Sync]) {
        run.apply(operation);
    }
    let mut fresh = run.afresh();
    fresh.sync();
    assert_eq!(run.kernel.text(), fresh.kernel.text(), "left: incremental, right: fresh");
}
