//! Packet counters of iptables mode, read from the kernel at each scrape.

use std::collections::BTreeMap;
use std::io;

use prometheus::Result;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use proxier::iptables::{INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER};

use super::make::family;

/// The counter's name in the kernel, its metric, and its help text.
const COUNTERS: [(&str, &str, &str); 2] = [
    (
        INVALID_DROPPED_COUNTER,
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        "[ALPHA] Packets dropped by iptables because conntrack has no valid state for them",
    ),
    (
        LOCALHOST_NODE_PORTS_COUNTER,
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
        "[ALPHA] Packets accepted on node ports of loopback addresses",
    ),
];

/// Reads all counters of the kernel, by name.
pub type ReadCounters = Box<dyn Fn() -> io::Result<BTreeMap<String, u64>> + Send + Sync>;

/// Collects the kernel's counters.
pub struct PacketCounters {
    read: ReadCounters,
    desc: Desc,
}

impl PacketCounters {
    pub fn new(read: ReadCounters) -> Result<Self> {
        let (_, name, help) = COUNTERS[0];
        Ok(Self { read, desc: Desc::new(name.to_owned(), help.to_owned(), Vec::new(), Default::default())? })
    }
}

impl Collector for PacketCounters {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    #[allow(clippy::cast_precision_loss)] // the format has one kind of number
    fn collect(&self) -> Vec<MetricFamily> {
        // A kernel without such counters is not an error: the rules do not use them then.
        let counted = (self.read)().unwrap_or_default();
        let known = COUNTERS.iter().filter_map(|(counter, name, help)| Some((name, help, *counted.get(*counter)?)));
        known.map(|(name, help, packets)| family(name, help, MetricType::COUNTER, &[(&[], packets as f64)])).collect()
    }
}
