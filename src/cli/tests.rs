//! Flags in every spelling, and what becomes of them.

use super::*;

fn line(text: &str) -> Line {
    let arguments = std::iter::once("kube-proxy").chain(text.split_whitespace()).map(str::to_owned);
    parse(arguments).unwrap_or_else(|stop| panic!("{}", stop.text))
}

fn shown(line: &Line, name: &str) -> String {
    let found = line.shown.iter().find(|(flag, _)| flag == name);
    found.unwrap_or_else(|| panic!("no flag {name}")).1.clone()
}

#[test]
fn flags_are_taken_in_every_spelling() {
    let line = line(
        "--mode iptables --masquerade_all --iptables-localhost-nodeports=false -v2 --cluster_cidr=10.0.0.0/8 \
         --nodeport-addresses a,b --nodeport-addresses=c --iptables-sync-period 1m --masquerade-all=T --v=4 -v=5",
    );
    let file = line.complete().expect("a configuration").file;
    assert_eq!((&*file.mode, file.iptables.masquerade_all), ("iptables", true));
    assert_eq!(file.iptables.localhost_node_ports, Some(false));
    assert_eq!((file.logging.verbosity, &*file.cluster_cidr), (5, "10.0.0.0/8"));
    assert_eq!(file.node_port_addresses, ["a", "b", "c"]);
    assert_eq!(shown(&line, "iptables-sync-period"), "1m0s");
    assert_eq!(shown(&line, "nodeport-addresses"), "[a,b,c]");
}
