//! Metrics of localhost node ports in nftables mode (KEP-6032).

use std::collections::BTreeMap;

use netfilter::IpFamily;
use prometheus::proto::MetricType;
use prometheus::{IntCounterVec, IntGaugeVec, Result};
use proxier::model::Protocol;

use super::make::{FAMILY, Registrar, counters, gauges};
use super::scraped::ScrapedMetric;

const REJECTED: (&str, &str) = (
    "kubeproxy_nftables_localhost_nodeport_rejected_packets_total",
    "[ALPHA] Packets to localhost node ports that were rejected because no proxy serves them",
);

/// The metrics of the localhost proxy.
#[derive(Clone)]
pub struct LocalhostMetrics {
    /// Listening sockets.
    pub listeners: IntGaugeVec,
    /// Attempts to listen that failed.
    pub failures: IntCounterVec,
}

impl LocalhostMetrics {
    pub fn new(mode: &str, maker: &Registrar) -> Result<Self> {
        let exposed = mode == "nftables";
        let name = |suffix: &str| format!("nftables_localhost_nodeport_{suffix}");
        let (open, failed) = ("Localhost node ports that are served", "Localhost node ports that could not be opened");
        Ok(Self {
            listeners: maker.add_if(exposed, gauges(&name("listeners"), open, FAMILY)?)?,
            failures: maker.add_if(exposed, counters(&name("listener_creation_failures_total"), failed, FAMILY)?)?,
        })
    }
}

/// The packets to localhost node ports that the rules have rejected.
pub type RejectedPackets = BTreeMap<(IpFamily, Protocol), u64>;

#[allow(clippy::cast_precision_loss)] // the format has one kind of number
pub fn rejected_packets(read: Box<dyn Fn() -> RejectedPackets + Send + Sync>) -> Result<ScrapedMetric<2>> {
    let samples = move || {
        let counted = read().into_iter();
        counted.map(|((of, protocol), packets)| ([of.name(), protocol.name()], packets as f64)).collect()
    };
    ScrapedMetric::new(REJECTED, MetricType::COUNTER, ["ip_family", "protocol"], samples)
}
