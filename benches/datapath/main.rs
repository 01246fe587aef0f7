//! What a new connection costs in the kernel, by mode and number of Services.
//!
//! Run it by hand as root, on a quiet machine: `cargo bench --bench datapath`. `SERVICES=100,10000` selects sizes,
//! `REAL=1` adds rules in the shape of upstream's nftables mode (nft takes a minute for 10,000 Services).
//!
//! A client sends SYNs, each of another flow, through a veth pair to a node, which forwards them to a sink that drops
//! them on arrival. The kernel handles a packet on the sender's CPU, from the system call to the sink, so the time of a
//! call is the CPU time of its packets. Prints microseconds per packet, the median of rounds, for plain forwarding,
//! conntrack alone, one static DNAT rule, and each mode.

mod rules;
mod topology;

use std::time::Duration;

use self::rules::Ruleset;
use self::topology::Topology;

/// Endpoints per Service.
const ENDPOINTS: u32 = 10;
const SIZES: &str = "100,1000,10000,40000";

fn main() {
    // `cargo test --all-targets` runs benches too, but without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("datapath: run it with cargo bench --bench datapath");
        return;
    }
    let sizes = std::env::var("SERVICES").unwrap_or_else(|_| SIZES.to_owned());
    let sizes: Vec<u32> = sizes.split(',').map(|size| size.parse().expect("SERVICES has numbers")).collect();
    let with_real = std::env::var_os("REAL").is_some();

    println!("| rules | Services | us per new connection |\n|---|---|---|");
    for ruleset in Ruleset::FLOOR {
        report(ruleset, 1);
    }
    for size in sizes {
        for ruleset in Ruleset::MODES {
            if with_real || ruleset != Ruleset::UpstreamNftables {
                report(ruleset, size);
            }
        }
    }
}

fn report(ruleset: Ruleset, services: u32) {
    let topology = Topology::new();
    ruleset.load(&topology.node, services);
    let mut rounds = topology.measure(services);
    rounds.sort_unstable();
    let median = rounds[rounds.len() / 2];
    println!("| {} | {services} | {:.2} (best {:.2}) |", ruleset.label(), micros(median), micros(rounds[0]));
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
