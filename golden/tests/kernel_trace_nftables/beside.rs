//! Tables of other programs beside kube-proxy's iptables rules: both decide, in the kernel's order.

use golden::case::{Case, Kind, Mode, cases};
use golden::flows::{FlowTable, entry};
use netfilter::IpFamily;
use netfilter::kernel::{Flavour, NftReader, RuleReader};
use netfilter::nft::ruleset;
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{ConnState, Origin, RecentLists, trace_and_supply};
use regex::Regex;

use crate::machine::{Machine, agrees};

/// A CNI that translates for itself before kube-proxy and after it, and a firewall before iptables' filter table.
const OTHERS: &str = r#"
table ip cni {
	chain before {
		type nat hook prerouting priority dstnat - 1; policy accept;
		tcp dport 30080 ip saddr 198.51.100.0/25 dnat to 10.244.9.9:80
	}
	chain after {
		type nat hook prerouting priority dstnat + 1; policy accept;
		ip daddr { 10.96.0.0/12, 192.168.50.2 } tcp dport 1-65535 dnat to 10.244.8.8
	}
	chain forward {
		type filter hook forward priority filter - 1; policy accept;
		ct status dnat ip daddr 10.244.1.0/24 meta mark & 0x4000 == 0 reject
	}
	chain leaving {
		type nat hook postrouting priority srcnat - 1; policy accept;
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
		ip saddr 10.244.1.0/24 masquerade fully-random
	}
}
"#;

fn restore(machine: &Machine, case: &Case) {
    let recorded = case.expected(Mode::Iptables, 0, Kind::Iptables);
    // Their kernel had these counters.
    let counted = Regex::new(" -m nfacct --nfacct-name +[^ ]+").unwrap();
    machine.node.feed("iptables-nft-restore", &["--noflush"], &counted.replace_all(&recorded, "")).unwrap();
}

#[test]
fn iptables_rules_and_tables_of_others_are_walked_together() {
    let mut machine = Machine::new();
    let (mut compared, mut failures, mut both) = (0, Vec::new(), 0);
    for name in ["103-nodeport-etp-local", "004-clusterip-2-endpoints", "100-nodeport-cluster", "210-lb-source-ranges"]
    {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        machine.load(OTHERS);
        restore(&machine, &case);
        let node = machine.as_met(IpFamily::V4);
        let (iptables, outline) = machine.node.netns().enter(|| {
            let mut ruleset = Ruleset::new(IpFamily::V4);
            let mut reader = ruleset.reader();
            RuleReader::find(IpFamily::V4, Flavour::Nft).unwrap().save(None, &mut |line| reader.line(line)).unwrap();
            assert_eq!(reader.finish(), []);
            (ruleset, NftReader::new(IpFamily::V4).read_outline().unwrap())
        });
        let tables: Vec<bool> = outline.tables.iter().map(|(id, table)| table.is_iptables(id)).collect();
        assert!(tables.contains(&true) && tables.contains(&false), "{:?}", outline.tables.keys());
        for flow in FlowTable::load(name).unwrap().flows {
            let on_wire = !flow.packet.destination.ip().is_loopback() && flow.packet.origin != Origin::Host;
            if !flow.packet.source.is_ipv4() || flow.packet.state != ConnState::New || !on_wire {
                continue;
            }
            let Ok(_) = entry(&flow.packet.origin) else { continue };
            let packet = machine.next(&flow.packet);
            let trace = machine.node.netns().enter(|| {
                let mut reader = NftReader::new(IpFamily::V4);
                let mut supply =
                    |ruleset: &mut ruleset::Ruleset, lack: &ruleset::UnreadPart| reader.read_part(ruleset, lack);
                let met = (&packet, &node, &RecentLists::new());
                trace_and_supply((&iptables, None), &mut outline.clone(), met, &mut supply).unwrap()
            });
            let (outcome, replaced, mut events) = machine.send(&packet);
            // Of iptables' own rules the walk knows no numbers.
            let foreign = |chain: &str| ["ip cni ", "inet tracing "].iter().any(|table| chain.starts_with(table));
            let ended = events.last().cloned();
            events.retain(|event| foreign(&event.chain));
            events.extend(
                ended
                    .filter(|event| !foreign(&event.chain))
                    .map(|event| golden::nftrace::Event { rule: None, ..event }),
            );
            let sent = (outcome, replaced, events);
            let branches = trace.branches.iter().map(|branch| {
                let mut branch = branch.clone();
                both += usize::from(branch.steps.iter().any(|step| step.handle.is_none()));
                branch.steps.retain(|step| step.handle.is_some());
                branch
            });
            compared += 1;
            if !branches.into_iter().any(|branch| agrees(&branch, &packet, &sent)) {
                failures.push(format!("{name}: {packet}\nthe kernel: {sent:#?}\nthe walk:\n{trace}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures, the first: {}", failures.len(), failures[0]);
    assert!(compared > 50 && both > 50, "{compared}, {both}");
}
