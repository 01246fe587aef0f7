//! Hanging tools: health reports them, stopping does not wait for them, and none outlives the proxy.

use std::time::{Duration, Instant};

use golden::cluster::eventually;
use golden::sample::slice;
use golden::tools::{ToolFault, Tools, runs};
use nix::sys::signal::Signal;

use super::{WEB, World};

/// The timeout for stopping.
const STOP: Duration = Duration::from_secs(10);

/// A proxy with wrapped tools that has programmed `web`. Health returns 503 two seconds after a hang.
fn running(prepare: impl FnOnce(&World, &Tools)) -> (World, Tools) {
    let mut world = World::new();
    let tools = Tools::new(world.node.dir());
    prepare(&world, &tools);
    let path = format!("PATH={}", tools.path());
    let url = world.api.url();
    let common = ["--master", &url, "--iptables-min-sync-period=0s", "--iptables-sync-period=1s", "-v=2"];
    let arguments = [&common[..], &["--iptables-backend=programs"]].concat();
    world.node.start_by(&["sh", "-c", "ulimit -S -n 512; exec \"$0\" \"$@\"", "env", &path], &arguments);
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    (world, tools)
}

impl World {
    fn change(&self, pod: &str) {
        self.api.apply(slice("web-1", "web", &[pod]));
    }

    fn until_hung(&self, tools: &Tools) {
        self.node.until("a tool hangs", || !tools.hung().is_empty());
    }

    fn unhealthy_until_mended(&self, tools: &Tools) {
        for path in ["/healthz", "/livez"] {
            self.node.until_health(path, 503);
        }
        tools.mend();
        for path in ["/healthz", "/livez"] {
            self.node.until_health(path, 200);
        }
        self.change("10.244.2.77");
        self.node.until_endpoints(WEB, &["10.244.2.77:8080"]);
    }
}

#[test]
fn sigterm_while_a_tool_hangs_ends_the_proxy_with_0_in_time_and_the_tool_with_it() {
    let (mut world, tools) = running(|_, _| {});
    tools.fault("tables-restore", ToolFault::Hang);
    world.change("10.244.2.6");
    world.until_hung(&tools);
    let begun = Instant::now();
    let status = world.node.end(Signal::SIGTERM);
    assert!(begun.elapsed() < STOP, "stopping took {:?}", begun.elapsed());
    assert_eq!(status.code(), Some(0), "{}", world.node.log());
    eventually("no tool runs", Duration::from_secs(1), || !tools.hung().into_iter().any(runs));
}

#[test]
fn sigkill_while_a_tool_hangs_ends_the_tool_within_a_second() {
    let (mut world, tools) = running(|_, _| {});
    tools.fault("tables-restore", ToolFault::Hang);
    world.change("10.244.2.6");
    world.until_hung(&tools);
    assert!(tools.hung().into_iter().any(runs));
    assert_eq!(
        tools.limits(),
        ["512".to_owned()].into(),
        "tools have the limit on open files that the proxy inherited"
    );
    world.node.end(Signal::SIGKILL);
    eventually("no tool runs", Duration::from_secs(1), || !tools.hung().into_iter().any(runs));
}

#[test]
fn hanging_sync_is_unhealthy_until_it_continues() {
    let (world, tools) = running(|_, _| {});
    tools.fault("tables-restore", ToolFault::Hang);
    world.change("10.244.2.6");
    world.until_hung(&tools);
    world.unhealthy_until_mended(&tools);
}

#[test]
fn hanging_drift_check_is_unhealthy_although_no_change_waits() {
    let (world, tools) = running(|_, _| {});
    world.node.until_health("/healthz", 200);
    tools.fault("tables-save", ToolFault::Hang);
    // A change of others: now the rules are read back.
    world.node.netns().run("iptables -w -t filter -N FOREIGN");
    world.until_hung(&tools);
    world.unhealthy_until_mended(&tools);
}

#[test]
fn hanging_sweep_of_leftovers_delays_no_change() {
    let (world, tools) = running(|world, tools| {
        // A chain of IPVS mode in the other flavour, where the sweep needs the programs.
        world.node.netns().run("iptables-legacy -w -t filter -N KUBE-IPVS-FILTER");
        tools.fault("-legacy", ToolFault::Hang);
    });
    world.until_hung(&tools);
    world.change("10.244.2.6");
    world.node.until_endpoints(WEB, &["10.244.2.6:8080"]);
    world.node.until_health("/healthz", 200);
    tools.mend();
    let chains = || world.node.netns().run("iptables-legacy-save -t filter");
    world.node.until("the leftover is removed", || !chains().contains("KUBE-IPVS-FILTER"));
}
