//! Decoders of what the kernel and its tools say, as functions that fuzz targets call. Not a public interface.

use super::netlink::{Attributes, fuzzing, nfgenmsg};
use super::{
    address_watch, command, conntrack, flavour, flows, host, ipset, iptables, ipvs, link, nfacct, node, recent,
};
use crate::iptables::Chain;

pub use super::nftables::fuzzing::ruleset;

/// Reads a datagram as framing alone: messages, acknowledgements, ends of dumps, attributes.
///
/// # Panics
/// If messages read differently when they come one by one, or attributes when they are written again.
pub fn netlink(datagram: &[u8]) {
    fuzzing::framing(datagram);
}

/// Reads a datagram of ipset's.
///
/// # Panics
/// If a set or an entry is another one when it is written and read again.
pub fn ipset(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| ipset::fuzz(received.payload));
}

/// Reads a datagram of IPVS'.
///
/// # Panics
/// If a server is another one when it is written and read again.
pub fn ipvs(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| ipvs::fuzz(received.payload));
}

/// Reads a datagram of rtnetlink's: devices, addresses, neighbours, notifications.
///
/// # Panics
/// If an address is another one when it is written and read again.
pub fn links(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| {
        link::fuzz(received.payload);
        let _ = (node::link(received), node::neighbour(received), address_watch::changed_device(received));
    });
}

/// Reads a datagram of ctnetlink's or nfacct's.
///
/// # Panics
/// If a flow is another one when it is written and read again, or the request that deletes it names another one.
pub fn conntrack(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| {
        conntrack::fuzz(received.payload);
        let _ =
            (flows::live(received.attributes(nfgenmsg(0).len())), nfacct::counter(Attributes::new(received.payload)));
        let _ = nfacct::counter(received.attributes(nfgenmsg(0).len()));
    });
}

/// Reads what a tool says: of what is wrong, its version, a saved table.
///
/// # Panics
/// If lines are named that are not in the text, or arguments are longer than it.
pub fn tool(bytes: &[u8]) {
    let said = command::said(&String::from_utf8_lossy(bytes));
    let lines = iptables::refused_lines(&said);
    assert!(lines.is_sorted() && lines.len() <= said.matches("line").count());
    assert!(iptables::arguments(&said).concat().len() <= said.len());
    let _ = (iptables::knows_random_fully(&said), flavour::named(&said));
    let found = iptables::references(bytes, &|chain: &Chain| chain.as_str().starts_with("KUBE-"));
    assert!(found.is_ok_and(|found| found.values().all(|rule| rule.starts_with("-A "))));
    let _ = flavour::declared_hint(&["KUBE-IPTABLES-HINT"], bytes);
}

/// Reads a file of `/proc` or `/sys` as each of those that are read.
pub fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (host::number("a", &text).map_err(|error| error.to_string()), host::version(&text), host::count(&text));
    let _ = (host::ignored(&text), iptables::named(&text), node::command_line(bytes, "daemon"));
    for line in text.lines() {
        let _ = (node::route_v4(line), node::route_v6(line));
        if let Some((_, seen)) = recent::entry(line) {
            let _ = recent::age(seen, &text, &text);
            let uptime = text.lines().last().unwrap_or_default();
            let _ = recent::age(seen, &text, uptime);
        }
    }
}
