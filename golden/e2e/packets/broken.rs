//! Objects that an API server and iptables would reject.
//!
//! iptables-restore accepts affinity timeouts from 1 to 4294967295 only. Every other Service must work, the log must
//! name the rejected ones, and once corrected they must work.

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, Family, NODE, POD_5, POD_6, POD_9, Service, eventually, ready};

use super::SOON;

pub(super) fn rejected_rules_are_left_out(cluster: Cluster) {
    let good = Service::new("good", 100).endpoints([ready(POD_5)]);
    let zero = Service::new("zero-seconds", 101).endpoints([ready(POD_5)]);
    let negative = Service::new("negative-seconds", 102).endpoints([ready(POD_6)]);
    let late = Service::new("late", 103).endpoints([ready(POD_6)]);
    let broken = [zero.clone().affinity(0), negative.clone().affinity(-1)];
    let [broken_zero, broken_negative] = broken.clone();

    // They are there from the start: not even the first sync may fail for the others.
    let cluster = cluster.running(&[broken_zero.clone(), good.clone(), broken_negative.clone()]);
    let works = |service: &Service| {
        Family::BOTH.iter().all(|family| cluster.pod(POD_9).attempt(Tcp, service.address(*family)).is_ok())
    };
    eventually("the good Service works", SOON, || works(&good));
    eventually("the log complains of both by name", SOON, || {
        let log = cluster.log();
        let complaints: Vec<&str> = log.lines().filter(|line| line.starts_with(['E', 'W'])).collect();
        broken.iter().all(|service| complaints.iter().any(|line| line.contains(&service.full_name())))
    });

    // Later changes get through too, and a change of endpoints of a good one.
    cluster.write(&[broken_zero, good.clone().endpoints([ready(POD_6)]), broken_negative, late.clone()]);
    eventually("a Service created later works", SOON, || works(&late));
    for family in Family::BOTH {
        eventually("a changed Service follows", SOON, || {
            cluster.pod(POD_9).reach(Tcp, good.address(family)).pod == POD_6.name
        });
        for service in [&zero, &negative] {
            let nat = cluster.rules(family, "nat");
            assert!(!nat.mention(&service.full_name()), "{} is half there:\n{}", service.full_name(), nat.text());
        }
    }

    cluster.write(&[zero.clone().affinity(1), good.clone(), negative.clone().affinity(86400), late.clone()]);
    eventually("corrected, they work", SOON, || [&zero, &good, &negative, &late].into_iter().all(works));
}

/// The same where no tool is in between: what cannot be is left out when the object is read.
pub(super) fn invalid_object_does_not_affect_other_services(cluster: Cluster) {
    let good = Service::new("good", 100).endpoints([ready(POD_5)]);
    let negative = Service::new("negative-seconds", 101).endpoints([ready(POD_6)]);
    let late = Service::new("late", 102).endpoints([ready(POD_6)]);
    let broken = negative.clone().affinity(-1);
    let cluster = cluster.running(&[broken.clone(), good.clone()]);
    let works = |service: &Service| {
        Family::BOTH.iter().all(|family| cluster.pod(POD_9).attempt(Tcp, service.address(*family)).is_ok())
    };
    eventually("the good Service works", SOON, || works(&good));
    eventually("the log complains by name", SOON, || {
        let log = cluster.log();
        log.lines().any(|line| line.starts_with(['E', 'W']) && line.contains(&broken.full_name()))
    });
    cluster.write(&[broken.clone(), good.clone(), late.clone()]);
    eventually("a Service created later works", SOON, || works(&late));
    for family in Family::BOTH {
        assert!(!cluster.table(family).contains(&broken.full_name()), "{}", cluster.table(family));
    }
    cluster.write(&[negative.affinity(86400), good.clone(), late.clone()]);
    eventually("corrected, it works", SOON, || [&broken, &good, &late].into_iter().all(works));
}

/// A base chain with one of our names, to which no verdict may jump. The table is replaced before the kernel can refuse a
/// batch.
pub(super) fn refused_objects_are_named_and_left_out(cluster: Cluster) {
    let good = Service::new("good", 100).endpoints([ready(POD_5)]);
    let refused = Service::new("refused", 101).node_port(30080).endpoints([ready(POD_6)]);
    let late = Service::new("late", 102).endpoints([ready(POD_6)]);
    let slow = serde_json::json!({ "syncPeriod": "10s", "minSyncPeriod": "100ms" });
    let cluster = cluster.configured("nftables", slow).running(std::slice::from_ref(&good));
    for family in ["ip", "ip6"] {
        let chain = format!("{family} kube-proxy external-nodeport-endpoints-4");
        let _ = cluster.on_node(&format!("nft add chain {chain} {{ type filter hook input priority 0; }}"));
    }
    cluster.write(&[refused.clone(), good.clone(), late.clone()]);
    let works = |service: &Service| {
        Family::BOTH.iter().all(|family| cluster.pod(POD_9).attempt(Tcp, service.address(*family)).is_ok())
    };
    eventually("the log names the chain, or the Service in the kernel's words", SOON, || {
        let log = cluster.log();
        log.lines().any(|line| {
            let is_conflict =
                line.contains("replacing nf_tables table") && line.contains("external-nodeport-endpoints-4");
            let is_refusal = line.contains(&refused.full_name()) && line.contains("Operation not supported");
            is_conflict || is_refusal
        })
    });
    eventually("all others work", SOON, || works(&good) && works(&late));
    eventually("it works when nothing is in its way", SOON * 3, || {
        works(&refused) && Family::BOTH.iter().all(|f| cluster.outside().attempt(Tcp, NODE.at(*f, 30080)).is_ok())
    });
}
