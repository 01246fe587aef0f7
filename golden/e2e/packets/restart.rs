//! A proxy that is killed and restarted.
//!
//! Rules stay in the kernel, so no connection fails; afterwards rules match objects that changed meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, NODE, POD_5, POD_6, POD_9, Service, eventually, ready};

use super::SOON;

/// Sets the flag when dropped, also by a panic: the loops must end either way.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects to the Service all the time while `meanwhile` runs: no connection may fail, and open ones must stay open.
pub(super) fn unnoticed(cluster: &Cluster, service: &Service, node_port: u16, meanwhile: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let mut sessions = Family::BOTH.map(|family| cluster.pod(POD_9).session(service.address(family)));
    let (pod, outside) = (cluster.pod(POD_9), cluster.outside());
    let watch = |client: golden::cluster::Client<'_>, to| {
        let mut connections = 0;
        while !stop.load(Ordering::Relaxed) {
            let outcome = client.attempt(Tcp, to);
            assert!(outcome.is_ok(), "connection {connections} to {to}: {outcome:?}");
            connections += 1;
        }
        connections
    };
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let mut loops = Vec::new();
        for family in Family::BOTH {
            loops.push(scope.spawn(move || watch(pod, service.address(family))));
            loops.push(scope.spawn(move || watch(outside, NODE.at(family, node_port))));
        }
        meanwhile();
        stop.store(true, Ordering::Relaxed);
        for one in loops {
            let connections = one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(connections > 10, "only {connections} connections: nothing was tested");
        }
    });
    for session in &mut sessions {
        session.still_works();
    }
}

pub(super) fn restart_after_sigkill_does_not_affect_connections(cluster: Cluster) {
    let web = Service::new("web", 90).node_port(30080).endpoints([ready(POD_5), ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    let rules =
        |cluster: &Cluster| Family::BOTH.map(|family| ["nat", "filter"].map(|table| cluster.rules(family, table)));
    let before = rules(&cluster);
    unnoticed(&cluster, &web, 30080, || {
        for name in ["one", "two", "three"] {
            cluster.kill();
            cluster.start();
            // Something new to do, so that the new proxy is seen to have synced.
            let other = Service::new(name, 94).endpoints([ready(POD_6)]);
            cluster.write(&[web.clone(), other.clone()]);
            let there = |family: &Family| cluster.rules(*family, "nat").mention(&other.full_name());
            eventually("the new proxy works", SOON, || Family::BOTH.iter().all(there));
        }
        cluster.write(std::slice::from_ref(&web));
        eventually("the rules are as before", SOON, || rules(&cluster) == before);
    });
}

pub(super) fn changes_during_downtime_are_applied_after_restart(cluster: Cluster) {
    let kept = Service::new("kept", 91).node_port(30080).endpoints([ready(POD_5)]);
    let gone = Service::new("gone", 92).node_port(30081).endpoints([ready(POD_5)]);
    let new = Service::new("new", 93).node_port(30081).endpoints([ready(POD_6)]);
    let cluster = cluster.running(&[kept.clone(), gone.clone()]);
    cluster.kill();
    cluster.write(&[kept.clone(), new.clone()]);
    cluster.start();
    for family in Family::BOTH {
        eventually("the new Service works", SOON, || {
            cluster.pod(POD_9).attempt(Tcp, new.address(family)).is_ok_and(|answer| answer.pod == POD_6.name)
        });
        eventually("nothing is left of the old one", SOON, || {
            let nat = cluster.rules(family, "nat");
            !cluster.table(family).contains(&gone.full_name())
                && nat.chains_with("KUBE-", &gone.full_name()).is_empty()
                && nat.chains().all(|chain| {
                    let per_service = chain.starts_with("KUBE-SVC-") || chain.starts_with("KUBE-SEP-");
                    !per_service || !nat.of(chain).is_empty()
                })
        });
        assert_eq!(cluster.outside().reach(Tcp, NODE.at(family, 30081)).pod, POD_6.name);
        assert_eq!(cluster.outside().reach(Tcp, NODE.at(family, 30080)).pod, POD_5.name);
    }
}
