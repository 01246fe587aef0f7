//! `kube-proxy dump` and `diagnose` in nftables mode: our own table and the real one's.

use serde_json::Value;

use super::node::Node;

const LOCAL: &str = "402-both-local";

#[test]
fn try_out() {
    for node in [Node::our_tables(LOCAL), Node::recorded_tables(LOCAL)] {
        let output = node.run_with_objects("dump -o wide");
        println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
}
