//! Rules of the nf_tables flavour that the iptables programs do not print, or print without their conditions.

use golden::flavour::Flavour;
use netfilter::IpFamily;

use super::diagnose::causes;
use super::node::{Node, json};

const LOCAL: &str = "402-both-local";
const VIP: &str = "203.0.113.11:80";

#[test]
fn table_that_iptables_calls_incompatible_is_traced_by_its_expressions() {
    let node = Node::recorded(LOCAL, Flavour::Nft);
    let trace = || json(&node.run(&format!("trace --from outside --to {VIP} -o json")));
    assert_eq!(trace()["branches"][0]["verdict"], "delivered");
    node.nft("insert rule ip filter FORWARD ct state new ip daddr 10.244.0.0/16 tcp dport 8080 counter drop\n");
    let refused = node.lab.node().try_run("iptables-nft -S FORWARD");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("incompatible"), "this test needs a table that iptables refuses to print: {said}");
    let traced = trace();
    assert_eq!(traced["branches"][0]["verdict"], "dropped", "{traced:#}");
    assert_eq!((&traced["certain"], &traced["unread"]), (&true.into(), &serde_json::json!([])), "{traced:#}");
    let steps = traced["branches"][0]["steps"].as_array().expect("steps");
    let last = steps.last().and_then(|step| step["rule"].as_str()).unwrap_or_default();
    assert!(last.contains("ct state new") && last.contains("drop"), "{traced:#}");
    assert_eq!(causes(&node, &format!("{VIP} --from outside")), ["refused-by-others"]);
    // The rest of the table reads as before, its other chains included.
    let dump = node.dump();
    assert_eq!((&dump["unread"], &dump["differences"]), (&serde_json::json!([]), &serde_json::json!([])), "{dump:#}");
}

#[test]
fn table_of_many_chains_is_read_whole() {
    let node = Node::recorded(LOCAL, Flavour::Nft);
    let declared: String = (0..600).map(|n| format!(":OTHER-{n} - [0:0]\n")).collect();
    // Of every hundredth chain, this program has no words for a rule.
    let rules = (0..600).map(|n| {
        let length =
            if n % 100 == 0 { format!("-A OTHER-{n} -m length --length 1:{}\n", n + 1) } else { String::new() };
        format!("-A OTHER-{n} -s 203.0.113.1/32 -j RETURN\n{length}-A OTHER-{n} -d 10.0.0.1/32 -p tcp -j ACCEPT\n")
    });
    let text = format!("*nat\n{declared}{}COMMIT\n", rules.collect::<String>());
    node.restore(IpFamily::V4, Flavour::Nft, &text);
    let dump = node.dump();
    assert_eq!((&dump["unread"], &dump["differences"]), (&serde_json::json!([]), &serde_json::json!([])), "{dump:#}");
    let saved = node.lab.node().run("iptables-nft-save -t nat");
    let tables = dump["facts"]["tables"].as_array().expect("tables");
    let nat = tables.iter().find(|table| table["family"] == "IPv4" && table["table"] == "nat").expect("nat");
    let lines = |first: &str| saved.lines().filter(|line| line.starts_with(first)).count();
    assert_eq!(nat["chains"], lines(":"), "{nat:#}");
    assert_eq!(nat["rules"], lines("-A"), "{nat:#}");
}

#[test]
fn rule_with_an_extension_is_a_doubt_where_iptables_refuses_to_print_it() {
    let node = Node::recorded(LOCAL, Flavour::Nft);
    node.iptables("-I FORWARD -p tcp -m length --length 1:9 -j DROP");
    node.iptables("-I FORWARD -m mark --mark 0x1/0xff -j DROP");
    let trace = || json(&node.run(&format!("trace --from outside --to {VIP} -o json")));
    let printed = trace();
    assert_eq!((&printed["certain"], &printed["unread"]), (&true.into(), &serde_json::json!([])), "{printed:#}");
    node.nft("add rule ip filter FORWARD ct state invalid drop\n");
    let refused = trace();
    assert_eq!(refused["branches"][0]["verdict"], "delivered", "{refused:#}");
    assert_eq!(refused["certain"], false, "{refused:#}");
    let doubts = refused["branches"][0]["doubts"].as_array().expect("doubts");
    assert!(
        doubts.iter().any(|doubt| doubt["hook"].as_str().is_some_and(|hook| hook.contains("FORWARD"))),
        "{refused:#}"
    );
}
