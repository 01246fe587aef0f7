//! The rows of a table: the connections that were counted between two reads.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use clap::ValueEnum;
use netfilter::IpFamily;
use proxier::model::ServicePortName;
use proxier::traffic::TrafficSample;

/// The number of reads that an object may be missing from before its count is forgotten.
///
/// The kernel lists virtual servers by position, so a read misses some while a proxy writes. Such a server's whole count must not be
/// shown as new connections when it is seen again.
const KEPT_READS: u64 = 10;

/// The order of Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Most new connections a second first, then most connections counted, then by name
    #[default]
    Rate,
    /// Most connections counted first
    Total,
    /// By namespace and name
    Name,
}

/// A Service port, both families together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The Service port.
    pub port: ServicePortName,
    /// New connections between the two reads.
    pub new: u64,
    /// Connections that the kernel has counted.
    pub total: u64,
    /// The endpoints that are counted, by address.
    pub endpoints: Vec<EndpointRow>,
    /// Whether all of its endpoints were there at the read before, so that their counts can be compared.
    pub is_comparable: bool,
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its address.
    pub address: SocketAddr,
    /// As for Service ports.
    pub new: u64,
    /// As for Service ports.
    pub total: u64,
    /// Whether it gets no new connections.
    pub is_draining: bool,
}

impl Row {
    /// Whether the kernel has counted no connection at all.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.total == 0
    }
}

/// The last counts of all objects of the kernel.
#[derive(Debug, Default)]
pub struct LastCounts {
    reads: u64,
    counts: HashMap<(IpFamily, Box<[u8]>), LastCount>,
}

#[derive(Clone, Copy, Debug)]
struct LastCount {
    connections: u64,
    /// The number of the read that had it.
    read: u64,
}

impl LastCounts {
    /// Takes a read of all counters; returns the rows since the read before, by name. After the first one all is new.
    pub fn advance(&mut self, samples: &[(IpFamily, TrafficSample)]) -> Vec<Row> {
        self.reads += 1;
        let mut rows: BTreeMap<&ServicePortName, (Row, BTreeMap<SocketAddr, EndpointRow>)> = BTreeMap::new();
        for (family, sample) in samples {
            let total = sample.counts.connections;
            let now = LastCount { connections: total, read: self.reads };
            let last = self.counts.insert((*family, sample.source.clone()), now);
            // A lower count is one of an object that was made anew.
            let new = last.map_or(total, |last| total.checked_sub(last.connections).unwrap_or(total));
            let (row, endpoints) = rows.entry(&sample.port).or_insert_with(|| (empty(&sample.port), BTreeMap::new()));
            row.is_comparable &= last.is_some_and(|last| last.read + 1 == self.reads);
            if sample.adds_to_port {
                row.new += new;
                row.total += total;
            }
            if let Some(address) = sample.endpoint {
                let none = EndpointRow { address, new: 0, total: 0, is_draining: true };
                let endpoint = endpoints.entry(address).or_insert(none);
                endpoint.new += new;
                endpoint.total += total;
                endpoint.is_draining &= sample.is_draining;
            }
        }
        let oldest = self.reads.saturating_sub(KEPT_READS);
        self.counts.retain(|_, count| count.read > oldest);
        let finish = |(row, endpoints): (Row, BTreeMap<_, EndpointRow>)| Row {
            endpoints: endpoints.into_values().collect(),
            ..row
        };
        rows.into_values().map(finish).collect()
    }
}

fn empty(port: &ServicePortName) -> Row {
    Row { port: port.clone(), new: 0, total: 0, endpoints: Vec::new(), is_comparable: true }
}

/// Sorts rows, which are by name.
pub fn sort(rows: &mut [Row], order: Order) {
    match order {
        Order::Rate => rows.sort_by_key(|row| Reverse((row.new, row.total))),
        Order::Total => rows.sort_by_key(|row| Reverse(row.total)),
        Order::Name => {}
    }
}

#[cfg(test)]
mod tests {
    use proxier::model::Protocol;
    use proxier::traffic::connections;

    use super::*;

    fn sample(port: &str, endpoint: u8, count: u64) -> (IpFamily, TrafficSample) {
        let port = ServicePortName::parse(port, Protocol::Tcp).expect("a name");
        let sample = TrafficSample {
            source: format!("{port} {endpoint}").into_bytes().into(),
            port,
            endpoint: Some(([10, 0, 0, endpoint], 80).into()),
            adds_to_port: true,
            is_draining: false,
            counts: connections(count),
        };
        (IpFamily::V4, sample)
    }

    #[test]
    fn rows_are_sorted_by_rate_total_or_name_and_new_objects_count_as_a_whole() {
        let before = [sample("a/old", 1, 100), sample("b/busy", 1, 5), sample("c/reset", 1, 9)];
        let now = [sample("a/old", 1, 101), sample("b/busy", 1, 25), sample("c/reset", 1, 2), sample("b/busy", 2, 3)];
        let shown = |order| -> Vec<(String, u64, u64)> {
            let mut last = LastCounts::default();
            last.advance(&before);
            let mut rows = last.advance(&now);
            sort(&mut rows, order);
            rows.iter().map(|row| (row.port.to_string(), row.new, row.total)).collect()
        };
        let row = |name: &str, new, total| (name.to_owned(), new, total);
        let (old, busy, reset) = (row("a/old", 1, 101), row("b/busy", 23, 28), row("c/reset", 2, 2));
        assert_eq!(shown(Order::Rate), [busy.clone(), reset.clone(), old.clone()]);
        assert_eq!(shown(Order::Total), [old.clone(), busy.clone(), reset.clone()]);
        assert_eq!(shown(Order::Name), [old, busy, reset]);
    }

    #[test]
    fn a_count_that_some_reads_missed_goes_on_and_is_forgotten_later() {
        let mut last = LastCounts::default();
        let mut read = |count: Option<u64>| {
            let samples: Vec<_> = count.into_iter().map(|count| sample("a/web", 1, count)).collect();
            last.advance(&samples).first().map(|row| (row.new, row.is_comparable))
        };
        assert_eq!(read(Some(50)), Some((50, false)));
        assert_eq!(read(Some(51)), Some((1, true)));
        assert_eq!(read(None), None);
        assert_eq!(read(Some(54)), Some((3, false)), "counted over a longer time than others");
        (0..KEPT_READS).for_each(|_| assert_eq!(read(None), None));
        assert_eq!(read(Some(55)), Some((55, false)));
    }
}
