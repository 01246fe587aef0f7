//! Metrics of localhost node ports in nftables mode (KEP-6032).

use std::collections::BTreeMap;

use netfilter::IpFamily;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{IntCounterVec, IntGaugeVec, Result};
use proxier::model::Protocol;

use super::make::{FAMILY, Registrar, counters, family, gauges};

const REJECTED: &str = "kubeproxy_nftables_localhost_nodeport_rejected_packets_total";

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

/// Reads the kernel's counters at each scrape.
pub struct RejectedPacketCollector {
    read: Box<dyn Fn() -> RejectedPackets + Send + Sync>,
    desc: Desc,
}

impl RejectedPacketCollector {
    pub fn new(read: Box<dyn Fn() -> RejectedPackets + Send + Sync>) -> Result<Self> {
        let labels = vec!["ip_family".to_owned(), "protocol".to_owned()];
        Ok(Self { read, desc: Desc::new(REJECTED.to_owned(), HELP.to_owned(), labels, Default::default())? })
    }
}

const HELP: &str = "[ALPHA] Packets to localhost node ports that were rejected because no proxy serves them";

impl Collector for RejectedPacketCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    #[allow(clippy::cast_precision_loss)] // the format has one kind of number
    fn collect(&self) -> Vec<MetricFamily> {
        let counted = (self.read)();
        if counted.is_empty() {
            return Vec::new();
        }
        let labels: Vec<([(&str, &str); 2], f64)> = counted
            .iter()
            .map(|((of, protocol), packets)| {
                ([("ip_family", of.name()), ("protocol", protocol.name())], *packets as f64)
            })
            .collect();
        let values: Vec<(&[(&str, &str)], f64)> = labels.iter().map(|(labels, value)| (&labels[..], *value)).collect();
        vec![family(REJECTED, HELP, MetricType::COUNTER, &values)]
    }
}
