//! Metrics of connections to Service ports and endpoints and of refused packets, with `--service-metrics`. kube-proxy has
//! none.
//!
//! No label has a name that Prometheus' discovery in Kubernetes attaches to targets (`namespace`, `service`, `endpoint`):
//! it would rename ours.

use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::ipvs::Statistics;
use prometheus::Result;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use proxier::model::ServicePortName;
use proxier::traffic::{RefusalReason, RefusedBy};

use super::make::family;

const PORTS: (&str, &str) =
    ("kubeproxy_service_connections_total", "[ALPHA] New connections to a Service port, at any of its addresses");
const ENDPOINTS: (&str, &str) = (
    "kubeproxy_service_endpoint_connections_total",
    "[ALPHA] New connections to an endpoint of a Service port, from this node",
);
const PACKETS: (&str, &str) =
    ("kubeproxy_service_packets_total", "[ALPHA] Packets of connections to a Service port, from clients (in) and back");
const BYTES: (&str, &str) =
    ("kubeproxy_service_bytes_total", "[ALPHA] Bytes of connections to a Service port, from clients (in) and back");
const REFUSED: (&str, &str) = (
    "kubeproxy_service_refused_packets_total",
    "[ALPHA] Packets to a Service port that rules rejected or dropped, by reason",
);
const OMITTED: (&str, &str) = (
    "kubeproxy_service_metrics_omitted",
    "[ALPHA] Service ports, endpoints and refusals left out because of the limit",
);
const FAILURES: (&str, &str) = (
    "kubeproxy_service_metrics_read_failures_total",
    "[ALPHA] Failed reads of the kernel's counters; the last values are shown",
);
const LAST_READ: (&str, &str) = (
    "kubeproxy_service_metrics_last_read_timestamp_seconds",
    "[ALPHA] When the shown values of the kernel's counters were read",
);

/// The connections of Service ports in one family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FamilyTraffic {
    /// The Service ports, by name.
    pub ports: Vec<PortTraffic>,
    /// Refused packets, in order.
    pub refused: Vec<RefusedTraffic>,
    /// Values of refused packets left out because of the limit.
    pub omitted_refusals: usize,
    /// Service ports left out because of the limit.
    pub omitted_ports: usize,
    /// Endpoints left out because of the limit.
    pub omitted_endpoints: usize,
    /// Failed reads.
    pub failures: u64,
    /// Whether packets and bytes were counted.
    pub has_volume: bool,
    /// When the kernel was read last, in seconds since 1970; `None`: never.
    pub read_at: Option<f64>,
}

/// The connections of one Service port.
#[derive(Clone, Debug, PartialEq)]
pub struct PortTraffic {
    /// The Service port.
    pub port: ServicePortName,
    /// New connections, and packets and bytes where those are counted.
    pub counts: Statistics,
    /// The same of its endpoints, if those are shown.
    pub endpoints: Vec<(SocketAddr, Statistics)>,
}

/// The packets that were refused to a Service port, or to a Service at a port that it does not have, for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedTraffic {
    /// What they were sent to.
    pub by: RefusedBy,
    /// Why they were refused.
    pub reason: RefusalReason,
    /// Every packet, also one that a client sends again.
    pub packets: u64,
}

/// Reads the counts of all families; it must return in time for a scrape.
pub type ReadTraffic = Box<dyn Fn() -> Vec<(IpFamily, FamilyTraffic)> + Send + Sync>;

/// Collects the connections at each scrape.
pub struct TrafficCollector {
    read: ReadTraffic,
    desc: Desc,
}

impl TrafficCollector {
    pub fn new(read: ReadTraffic) -> Result<Self> {
        let (name, help) = PORTS;
        Ok(Self { read, desc: Desc::new(name.to_owned(), help.to_owned(), Vec::new(), Default::default())? })
    }
}

/// The values of one metric, with their labels.
#[derive(Default)]
struct Values(Vec<(Vec<(&'static str, String)>, f64)>);

impl Values {
    #[allow(clippy::cast_precision_loss)] // the format has one kind of number
    fn add(&mut self, labels: Vec<(&'static str, String)>, value: u64) {
        self.0.push((labels, value as f64));
    }

    /// The metric, if it has any value.
    fn family(&self, (name, help): (&str, &str), kind: MetricType) -> Option<MetricFamily> {
        let labels: Vec<(Vec<(&str, &str)>, f64)> = self
            .0
            .iter()
            .map(|(labels, value)| (labels.iter().map(|(name, text)| (*name, &**text)).collect(), *value))
            .collect();
        let values: Vec<(&[(&str, &str)], f64)> = labels.iter().map(|(labels, value)| (&labels[..], *value)).collect();
        (!values.is_empty()).then(|| family(name, help, kind, &values))
    }
}

impl Collector for TrafficCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let [mut ports, mut endpoints, mut packets, mut bytes] = [(); 4].map(|()| Values::default());
        let [mut refused, mut omitted, mut failures, mut read_at] = [(); 4].map(|()| Values::default());
        for (family, traffic) in (self.read)() {
            let of_family = || vec![("ip_family", family.name().to_owned())];
            for PortTraffic { port, counts, endpoints: of_port } in traffic.ports {
                let labels = [of_family(), port_labels(&port)].concat();
                for (address, counts) in of_port {
                    let address = vec![("endpoint_address", address.to_string())];
                    endpoints.add([address, labels.clone()].concat(), counts.connections);
                }
                if traffic.has_volume {
                    packets.add(directed("in", &labels), counts.packets);
                    packets.add(directed("out", &labels), counts.packets_back);
                    bytes.add(directed("in", &labels), counts.bytes);
                    bytes.add(directed("out", &labels), counts.bytes_back);
                }
                ports.add(labels, counts.connections);
            }
            for RefusedTraffic { by, reason, packets } in &traffic.refused {
                refused.add([of_family(), refusal_labels(by, *reason)].concat(), *packets);
            }
            let kinds = [
                ("service_port", traffic.omitted_ports),
                ("endpoint", traffic.omitted_endpoints),
                ("refusal", traffic.omitted_refusals),
            ];
            for (kind, count) in kinds {
                let count = u64::try_from(count).unwrap_or(u64::MAX);
                omitted.add([of_family(), vec![("kind", kind.to_owned())]].concat(), count);
            }
            failures.add(of_family(), traffic.failures);
            read_at.0.extend(traffic.read_at.map(|at| (of_family(), at)));
        }
        let (counter, gauge) = (MetricType::COUNTER, MetricType::GAUGE);
        let all = [
            ports.family(PORTS, counter),
            endpoints.family(ENDPOINTS, counter),
            packets.family(PACKETS, counter),
            bytes.family(BYTES, counter),
            refused.family(REFUSED, counter),
            omitted.family(OMITTED, gauge),
            failures.family(FAILURES, counter),
            read_at.family(LAST_READ, gauge),
        ];
        all.into_iter().flatten().collect()
    }
}

/// The labels with a direction, in the order of their names.
fn directed(direction: &str, labels: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    [&[("direction", direction.to_owned())], labels].concat()
}

fn port_labels(port: &ServicePortName) -> Vec<(&'static str, String)> {
    vec![
        ("protocol", port.protocol.name().to_owned()),
        ("service_name", port.service.name.to_string()),
        ("service_namespace", port.service.namespace.to_string()),
        ("service_port", port.port.to_string()),
    ]
}

/// The labels of refused packets. Of a port that the Service does not have, only the Service is known.
fn refusal_labels(by: &RefusedBy, reason: RefusalReason) -> Vec<(&'static str, String)> {
    let (protocol, port) = match by {
        RefusedBy::Port(port) => (port.protocol.name(), &*port.port),
        RefusedBy::Service(_) => ("", ""),
    };
    let service = by.service();
    vec![
        ("protocol", protocol.to_owned()),
        ("reason", reason.name().to_owned()),
        ("service_name", service.name.to_string()),
        ("service_namespace", service.namespace.to_string()),
        ("service_port", port.to_owned()),
    ]
}
