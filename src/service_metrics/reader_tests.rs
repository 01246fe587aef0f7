//! Tests of the reader: kernels that fail, hang or are slow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use proxier::model::{Protocol, ServicePortName};
use proxier::traffic::{self, TrafficSample};

use super::*;

fn selection() -> TrafficSelection {
    TrafficSelection { limit: 10, ..TrafficSelection::default() }
}

fn counted(connections: u64) -> CountedTraffic {
    let port = ServicePortName::parse("ns/web:http", Protocol::Tcp).expect("a name");
    let sample = TrafficSample {
        source: Box::new([1]),
        port,
        endpoint: None,
        adds_to_port: true,
        is_draining: false,
        counts: traffic::connections(connections),
    };
    CountedTraffic { connections: vec![sample], refused: Vec::new() }
}

/// Connections and failures of the only family.
fn shown(traffic: &ServiceTraffic) -> (Option<u64>, u64) {
    let families = traffic.read();
    let traffic = &families[0].1;
    (traffic.ports.first().map(|port| port.counts.connections), traffic.failures)
}

#[test]
fn each_scrape_shows_a_read_that_began_after_it() {
    let kernel = Arc::new(AtomicU64::new(0));
    let read_kernel = kernel.clone();
    let read: ReadCounts = Box::new(move |_| Ok(counted(read_kernel.load(Ordering::SeqCst))));
    let traffic = ServiceTraffic::start(&[IpFamily::V4], selection(), read).expect("a thread");
    for count in [0, 1, 5, 1000] {
        kernel.store(count, Ordering::SeqCst);
        assert_eq!(shown(&traffic), (Some(count), 0));
    }
}

#[test]
fn failed_read_leaves_the_last_values_and_is_counted() {
    let results = [Ok(3), Err("EIO"), Err("EIO"), Ok(4)];
    let mut results = results.into_iter();
    let read: ReadCounts = Box::new(move |_| match results.next().expect("four scrapes") {
        Ok(count) => Ok(counted(count)),
        Err(error) => Err(io::Error::other(error)),
    });
    let traffic = ServiceTraffic::start(&[IpFamily::V4], selection(), read).expect("a thread");
    let found: Vec<_> = (0..4).map(|_| shown(&traffic)).collect();
    assert_eq!(found, [(Some(3), 0), (Some(3), 1), (Some(3), 2), (Some(4), 2)]);
}

#[test]
fn scrape_does_not_wait_for_a_kernel_that_hangs() {
    let (answer, answers) = mpsc::channel::<u64>();
    let read: ReadCounts = Box::new(move |_| Ok(counted(answers.recv().map_err(io::Error::other)?)));
    let traffic = ServiceTraffic::start(&[IpFamily::V4], selection(), read).expect("a thread");
    answer.send(7).expect("a reader");
    assert_eq!(shown(&traffic), (Some(7), 0));
    let start = Instant::now();
    assert_eq!(shown(&traffic), (Some(7), 0), "the last values");
    let waited = start.elapsed();
    assert!(waited >= SCRAPE_DEADLINE && waited < 10 * SCRAPE_DEADLINE, "{waited:?}");
    // The read that hung ends, and the next scrape has a read of its own.
    answer.send(8).expect("a reader");
    answer.send(9).expect("a reader");
    assert_eq!(shown(&traffic), (Some(9), 0));
}
