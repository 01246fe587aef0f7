//! A table that does not hold is reported with its flow and rules.

#![allow(clippy::unwrap_used)]

use super::{FlowTable, check_iptables};

const RULES: &str = "\
*filter
-A INPUT -p tcp -m tcp --dport 81 -j REJECT --reject-with icmp-port-unreachable
COMMIT
*nat
:SVC - [0:0]
:ONE - [0:0]
:TWO - [0:0]
-A PREROUTING -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j SVC
-A SVC -m recent --rcheck --seconds 60 --reap --name ONE --rsource -j ONE
-A SVC -m recent --rcheck --seconds 60 --reap --name TWO --rsource -j TWO
-A SVC -m statistic --mode random --probability 0.5 -j ONE
-A SVC -j TWO
-A ONE -p tcp -m recent --set --name ONE --rsource -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A TWO -p tcp -m recent --set --name TWO --rsource -m tcp -j DNAT --to-destination 10.244.2.5:8080
COMMIT
";

fn table(flow: &str) -> Result<FlowTable, String> {
    FlowTable::parse(&format!("flows:\n- {flow}\n"))
}

fn check(flow: &str) -> Result<usize, String> {
    check_iptables(&table(flow)?, RULES, "")
}

#[test]
fn true_flows_hold() {
    let both = "expect: [\"10.244.1.5:8080\", \"10.244.2.5:8080\"]";
    assert_eq!(check(&format!("{{from: [pod, outside], to: \"10.96.0.10:80/tcp\", {both}}}")), Ok(2));
    assert_eq!(check("{from: host, to: \"192.168.50.2:81/tcp\", expect: reject}"), Ok(1));
    assert_eq!(check("{from: host, to: \"[fd00::1]:81/tcp\", expect: untouched}"), Ok(1));
    assert_eq!(check("{from: pod, to: \"10.0.0.1:1/udp\", expect: drop, modes: {iptables: untouched}}"), Ok(1));
    let again = "from: pod, to: \"10.96.0.10:80/tcp\", remembers: \"10.244.2.5:8080\"";
    assert_eq!(check(&format!("{{{again}, ago: 60, expect: \"10.244.2.5:8080\"}}")), Ok(1));
    assert_eq!(check(&format!("{{{again}, ago: 61, {both}}}")), Ok(1));
}

#[test]
fn a_wrong_expectation_fails_and_says_why() {
    let to = "from: pod, to: \"10.96.0.10:80/tcp\"";
    let error = check(&format!("{{{to}, expect: \"10.244.1.5:8080\"}}")).unwrap_err();
    assert!(error.contains("pod -> 10.96.0.10:80/tcp"), "{error}");
    assert!(error.contains("expected 10.244.1.5:8080\n"), "{error}");
    assert!(error.contains("found    10.244.1.5:8080 (50.0%) | 10.244.2.5:8080 (50.0%)"), "{error}");
    assert!(error.contains("nat PREROUTING   -A SVC -j TWO"), "{error}");
    for wrong in ["reject", "drop", "untouched", "\"10.244.1.5:8080, masqueraded\"", "[\"10.244.1.5:8080\", reject]"] {
        assert!(check(&format!("{{{to}, expect: {wrong}}}")).is_err(), "{wrong}");
    }
    let forgotten = check("{from: pod, to: \"10.0.0.1:1/tcp\", remembers: \"1.1.1.1:1\", expect: untouched}");
    assert!(forgotten.unwrap_err().contains("nothing remembers"));
}

#[test]
fn unequal_shares_fail() {
    let uneven = RULES.replace("--probability 0.5", "--probability 0.501");
    let table = table("{from: pod, to: \"10.96.0.10:80/tcp\", expect: [\"10.244.1.5:8080\", \"10.244.2.5:8080\"]}");
    assert!(check_iptables(&table.unwrap(), &uneven, "").is_err());
}

#[test]
fn a_table_that_means_nothing_is_refused() {
    for (flow, complaint) in [
        ("{from: pod, to: \"10.96.0.10:80/tcp\"}", "expect"),
        ("{from: pod, to: \"10.96.0.10:80\", expect: drop}", "IP:PORT/PROTOCOL"),
        ("{from: pod, to: \"10.96.0.10:80/icmp\", expect: drop}", "unknown protocol"),
        ("{from: unknown, to: \"10.96.0.10:80/tcp\", expect: drop}", "not pod, host, outside"),
        ("{from: \"fd00::1\", to: \"10.96.0.10:80/tcp\", expect: drop}", "different families"),
        ("{from: pod, to: \"10.96.0.10:80/tcp\", expect: dropped}", "reject, drop or untouched"),
        ("{from: pod, to: \"10.96.0.10:80/tcp\", expect: []}", "ends nowhere"),
        ("{from: pod, to: \"10.96.0.10:80/tcp\", expect: drop, ago: 1}", "ago without remembers"),
        ("{from: pod, to: \"10.96.0.10:80/tcp\", expect: drop, chain: KUBE-X}", "chain"),
        ("{from: [pod, pod], to: \"10.96.0.10:80/tcp\", expect: drop}", "stands here twice"),
    ] {
        let error = table(flow).unwrap_err();
        assert!(error.contains(complaint), "{flow}: {error}");
    }
}
