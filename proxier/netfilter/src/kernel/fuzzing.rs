//! Decoders of kernel messages and tool output, as entry points for fuzz targets. Not a public interface.

use super::netlink::{Attributes, fuzzing, nfgenmsg};
use super::{
    address_watch, command, conntrack, flavour, flows, host, ipset, iptables, ipvs, link, nfacct, node, recent,
};
use crate::iptables::Chain;

pub use super::nftables::fuzzing::ruleset;

/// Decodes the netlink framing of a datagram: messages, acknowledgements, ends of dumps, attributes.
///
/// # Panics
/// If messages decode differently one by one, or attributes after encoding them again.
pub fn netlink(datagram: &[u8]) {
    fuzzing::framing(datagram);
}

/// Decodes a datagram of ipset.
///
/// # Panics
/// If a set or an entry differs after encoding and decoding it again.
pub fn ipset(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| ipset::fuzz(received.payload));
}

/// Decodes a datagram of IPVS.
///
/// # Panics
/// If a server differs after encoding and decoding it again.
pub fn ipvs(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| ipvs::fuzz(received.payload));
}

/// Decodes a datagram of rtnetlink: devices, addresses, neighbours, notifications.
///
/// # Panics
/// If an address differs after encoding and decoding it again.
pub fn links(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| {
        link::fuzz(received.payload);
        let _ = (node::link(received), node::neighbour(received), address_watch::changed_device(received));
    });
}

/// Decodes a datagram of ctnetlink or nfacct.
///
/// # Panics
/// If an entry differs after encoding and decoding, or the request that deletes it names another entry.
pub fn conntrack(datagram: &[u8]) {
    fuzzing::each(datagram, &mut |received| {
        conntrack::fuzz(received.payload);
        let _ =
            (flows::live(received.attributes(nfgenmsg(0).len())), nfacct::counter(Attributes::new(received.payload)));
        let _ = nfacct::counter(received.attributes(nfgenmsg(0).len()));
    });
}

/// Parses tool output: error messages, versions, saved tables.
///
/// # Panics
/// If a reported line is not in the text, or the arguments are longer than the text.
pub fn tool(bytes: &[u8]) {
    let said = command::stderr_line(&String::from_utf8_lossy(bytes));
    let lines = iptables::refused_lines(&said);
    assert!(lines.is_sorted() && lines.len() <= said.matches("line").count());
    assert!(iptables::arguments(&said).concat().len() <= said.len());
    let _ = (iptables::knows_random_fully(&said), flavour::named(&said));
    let found = iptables::references(bytes, &|chain: &Chain| chain.as_str().starts_with("KUBE-"));
    assert!(found.is_ok_and(|found| found.values().all(|rule| rule.starts_with("-A "))));
    let _ = flavour::declared_hint(&["KUBE-IPTABLES-HINT"], bytes);
}

/// Parses a file of `/proc` or `/sys` in each supported format.
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
