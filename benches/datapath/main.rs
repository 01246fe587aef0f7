//! What a new connection costs in the kernel, by mode and number of Services.
//!
//! Run it by hand as root: `cargo bench --bench datapath`. `SERVICES=100,10000` selects sizes, `ROUNDS=80` the number of
//! rounds, `REAL=1` adds rules in the shape of upstream's nftables mode (nft takes a minute for 10,000 Services), and
//! `MODES=nftables` leaves out iptables mode. `CHANGES=a.nft,b.nft` adds the table of nftables mode as each file changes it.
//!
//! A client sends SYNs, each of another flow, through a veth pair to a node, which forwards them to a sink that drops
//! them on arrival. The kernel handles a packet on the sender's CPU, from the system call to the sink, so the CPU time of the
//! sending thread is that of its packets. All rulesets of a size take turns, a short round each, so that whatever else the
//! machine does concerns all of them. Prints microseconds of CPU time per packet: to a Service, and to no Service; and the
//! median of the differences to one static DNAT rule in the same turn.

mod rules;
mod topology;

use std::path::PathBuf;
use std::time::Duration;

use self::rules::Ruleset;
use self::topology::{Destination, Sender, Topology};

/// Endpoints per Service.
const ENDPOINTS: u32 = 10;
const SIZES: &str = "100,1000,10000,40000";
const ROUNDS: usize = 80;
/// Rounds before the measured ones, for caches and lazily loaded modules.
const WARM_UP: usize = 4;

fn main() {
    // `cargo test --all-targets` runs benches too, but without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("datapath: run it with cargo bench --bench datapath");
        return;
    }
    let of = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let sizes: Vec<u32> =
        of("SERVICES", SIZES).split(',').map(|size| size.parse().expect("SERVICES has numbers")).collect();
    let rounds = of("ROUNDS", &ROUNDS.to_string()).parse().expect("ROUNDS is a number");
    let (with_real, only_nftables) = (std::env::var_os("REAL").is_some(), of("MODES", "") == "nftables");
    let changes = of("CHANGES", "");
    let changed = changes.split(',').filter(|path| !path.is_empty()).map(|path| Ruleset::Changed(PathBuf::from(path)));
    let mut rulesets: Vec<Ruleset> = Ruleset::FLOOR.into_iter().chain(Ruleset::MODES).collect();
    rulesets.retain(|ruleset| match ruleset {
        Ruleset::UpstreamNftables => with_real,
        Ruleset::IptablesLegacy | Ruleset::IptablesNft => !only_nftables,
        _ => true,
    });
    rulesets.extend(changed);

    println!(
        "| rules | Services | us to a Service: median (best) | above static DNAT | us to no Service | above static DNAT |"
    );
    println!("|---|---|---|---|---|---|");
    for size in sizes {
        compare(&rulesets, size, rounds);
    }
}

/// The times of one ruleset, by round.
struct Measured {
    senders: [Sender; 2],
    rounds: [Vec<Duration>; 2],
    // Last, so that its namespaces outlive the senders.
    topology: Topology,
}

/// Measures all rulesets in turns, and prints a row for each.
fn compare(rulesets: &[Ruleset], services: u32, rounds: usize) {
    let mut all: Vec<Measured> = rulesets.iter().map(|ruleset| load(ruleset, services)).collect();
    topology::pin();
    for round in 0..WARM_UP + rounds {
        for at in 0..rulesets.len() {
            // Another one begins each turn: what came before it is in the caches.
            let measured = &mut all[(round + at) % rulesets.len()];
            for (sender, times) in measured.senders.iter().zip(&mut measured.rounds) {
                let time = measured.topology.round(sender, round);
                if round >= WARM_UP {
                    times.push(time);
                }
            }
        }
    }
    let floor = rulesets.iter().position(|ruleset| *ruleset == Ruleset::StaticDnat).expect("always measured");
    for (ruleset, measured) in rulesets.iter().zip(&all) {
        let cells = [0, 1].map(|to| {
            let (times, least) = (&measured.rounds[to], &all[floor].rounds[to]);
            let above = times.iter().zip(least).map(|(time, least)| micros(*time) - micros(*least));
            let best = times.iter().min().copied().unwrap_or_default();
            let median_time = median(times.iter().map(|time| micros(*time)));
            format!("{median_time:.2} ({:.2}) | {:.2}", micros(best), median(above))
        });
        println!("| {} | {services} | {} | {} |", ruleset.label(), cells[0], cells[1]);
        measured.topology.check(&measured.senders[0], ![Ruleset::Forwarding, Ruleset::Conntrack].contains(ruleset));
        measured.topology.check(&measured.senders[1], false);
    }
}

fn load(ruleset: &Ruleset, services: u32) -> Measured {
    let topology = Topology::new();
    // The floor translates one address, to which all of its packets go.
    let translated = if Ruleset::FLOOR.contains(ruleset) { 1 } else { services };
    ruleset.load(&topology.node, services);
    let senders = [Destination::Services(translated), Destination::Elsewhere].map(|to| topology.sender(to));
    Measured { senders, rounds: Default::default(), topology }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
