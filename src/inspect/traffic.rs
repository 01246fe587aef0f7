//! Reads the connections that the kernel has counted on this node, whichever kube-proxy wrote the rules, in every mode.

use std::io;
use std::time::Duration;

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, has_table};
use proxier::model::config::ServiceMetrics;
use proxier::traffic::TrafficSample;
use proxier::{iptables, nftables};
use proxier_inspect::node::read_error::ReadError;

use super::arguments::Sources;
use super::server_names::NamedServers;

/// How often the kernel copies the counters of virtual servers to where they are read (`ip_vs_est.c`).
const SERVERS_UPDATED_EVERY: Duration = Duration::from_secs(2);

/// What is said of a table of nftables mode without counters.
const UNCOUNTED: &str = "the rules of nftables mode count no connections: start kube-proxy with --service-metrics=Endpoints \
                         (serviceMetrics: {level: Endpoints} in its file); upstream's kube-proxy cannot count them in this mode";

/// The connections that were counted on a node.
#[derive(Debug, Default)]
pub struct NodeTraffic {
    /// The samples of both families.
    pub samples: Vec<(IpFamily, TrafficSample)>,
    /// Why some or all connections are not counted, or have no names, in sentences.
    pub notes: Vec<String>,
    /// How often the kernel updates the counts, if not at once.
    pub updated_every: Option<Duration>,
}

/// A reader of a node's counters.
#[derive(Debug)]
pub struct TrafficReader {
    servers: NamedServers,
}

impl TrafficReader {
    /// A reader that finds the names of virtual servers, which have none in the kernel, as the arguments say.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        Self { servers: NamedServers::new(sources) }
    }

    /// Reads all counters of both families.
    ///
    /// # Errors
    /// The first object that cannot be read: counts without it would be too low.
    pub fn read(&mut self) -> Result<NodeTraffic, ReadError> {
        let (mut traffic, mut uncounted) = (NodeTraffic::default(), Vec::new());
        for family in IpFamily::ALL {
            for flavour in [Flavour::Nft, Flavour::Legacy] {
                let read = iptables::read_connections(family, flavour);
                let read = read.map_err(|error| ReadError::of_io(family, "iptables rules", &error))?;
                traffic.add(family, read);
            }
            let read = read_nftables(family).map_err(|error| ReadError::of_io(family, "table kube-proxy", &error))?;
            if read.is_none() {
                uncounted.push(family.to_string());
            }
            traffic.add(family, read.unwrap_or_default());
            let servers = self.servers.read(family)?;
            if !servers.is_empty() {
                traffic.updated_every = Some(SERVERS_UPDATED_EVERY);
            }
            traffic.add(family, servers);
        }
        if !uncounted.is_empty() {
            traffic.notes.push(format!("{}: {UNCOUNTED}", uncounted.join(" and ")));
        }
        traffic.notes.extend(self.servers.note());
        Ok(traffic)
    }
}

impl NodeTraffic {
    fn add(&mut self, family: IpFamily, samples: Vec<TrafficSample>) {
        self.samples.extend(samples.into_iter().map(|sample| (family, sample)));
    }
}

/// Reads the table of nftables mode, if there is one; `None` if it has no counters, so that nothing is known.
fn read_nftables(family: IpFamily) -> io::Result<Option<Vec<TrafficSample>>> {
    if !has_table(family, nftables::TABLE)? {
        return Ok(Some(Vec::new()));
    }
    let read = nftables::read_connections(family, ServiceMetrics::Endpoints)?;
    let is_counted = !read.is_empty() || nftables::counts_connections(family)?;
    Ok(is_counted.then_some(read))
}
