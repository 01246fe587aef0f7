//! Causes that lie in the node: its kernel's tables, numbers and interfaces.
//!
//! It looks at the node's facts and the Service ports in question.

use std::net::IpAddr;

use proxier_inspect::node::Unread;
use proxier_inspect::node::facts::{Facts, ipv4_setting};
use proxier_inspect::node::paths::Paths;
use proxier_inspect::services::{EndpointView, ServicePortView};
use proxier_inspect::walk::{Origin, Packet, Trace, Verdict};

use super::finding::{Cause, Finding};

/// From how full on the conntrack table is worth a word, in percent.
const NEARLY_FULL: i64 = 90;
/// From here on it is full: the kernel drops old entries to make room for new ones, and so stays just below its limit.
const FULL: i64 = 99;
/// Whether bridges show packets to the rules.
pub const BRIDGED: [(&str, &str); 2] =
    [("IPv4", "net/bridge/bridge-nf-call-iptables"), ("IPv6", "net/bridge/bridge-nf-call-ip6tables")];
/// What tunnels add to each packet at least.
const OVERHEADS: [(&str, u32); 7] =
    [("vxlan", 50), ("geneve", 50), ("ipip", 20), ("sit", 20), ("ip6tnl", 40), ("gre", 24), ("wireguard", 60)];

/// Numbers that every kernel has: a node where they cannot be read has its `/proc/sys` hidden.
const ALWAYS: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter"];

/// What of the node could not be read.
pub fn unread(facts: &Facts) -> Option<Unread> {
    let missing: Vec<&str> = ALWAYS.into_iter().filter(|name| !facts.sysctls.contains_key(*name)).collect();
    (!missing.is_empty()).then(|| Unread::new("sysctls", format!("/proc/sys has no number {}", missing.join(", "))))
}

/// Problems of the node. `host_only`: the diagnosed connection comes from this node itself, so it is not forwarded.
pub fn of(facts: &Facts, views: &[ServicePortView], host_only: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(conntrack(facts));
    findings.extend(ipvs_conntrack(facts));
    if host_only {
        return findings;
    }
    findings.extend(super::forwarding::of_node(facts, views));
    findings.extend(reverse_path(facts));
    findings.extend(tunnels(facts));
    findings.extend(hairpin(facts, views));
    findings
}

fn conntrack(facts: &Facts) -> Option<Finding> {
    let conntrack = facts.conntrack.filter(|conntrack| conntrack.count * 100 >= conntrack.max * NEARLY_FULL)?;
    let full = conntrack.count * 100 >= conntrack.max * FULL;
    let what = format!(
        "the conntrack table is {}: {} of {} entries{}",
        if full { "full" } else { "nearly full" },
        conntrack.count,
        conntrack.max,
        if full { ", new connections are dropped" } else { "" }
    );
    let next = "raise net.netfilter.nf_conntrack_max (the proxy's --conntrack-max-per-core), and find out who opens so \
                many connections: kube-proxy dump shows flows by endpoint";
    Some(if full {
        Finding::certain(Cause::ConntrackFull, what, next)
    } else {
        Finding::suspect(Cause::ConntrackFull, what, next)
    })
}

/// Without it, connections of IPVS are not masqueraded, and the answers do not come back this way.
fn ipvs_conntrack(facts: &Facts) -> Option<Finding> {
    let off = facts.mode == Some("ipvs") && facts.sysctls.get("net/ipv4/vs/conntrack") == Some(&0);
    off.then(|| {
        Finding::certain(
            Cause::IpvsConntrackOff,
            "net/ipv4/vs/conntrack is 0: connections through virtual servers are not masqueraded",
            "sysctl -w net.ipv4.vs.conntrack=1, and find out what turned it off: the proxy turns it on when it starts",
        )
    })
}

/// Strict reverse path filters, where they can drop: packets were dropped already, or there are several ways out.
fn reverse_path(facts: &Facts) -> Option<Finding> {
    let all = facts.sysctls.get("net/ipv4/conf/all/rp_filter").copied().unwrap_or_default();
    let strict: Vec<&str> = facts.strict_links(all);
    let uplinks = facts.links.iter().filter(|link| {
        let own =
            link.addresses.iter().any(|ip| matches!(ip, IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_link_local()));
        link.up && own && link.master.is_none() && !matches!(link.kind.as_deref(), Some("bridge" | "dummy"))
    });
    let several = uplinks.count() > 1;
    if strict.is_empty() || (facts.reverse_path_drops == Some(0) && !several) {
        return None;
    }
    let drops = facts.reverse_path_drops.map_or_else(String::new, |drops| format!("; {drops} packets so far"));
    Some(Finding::suspect(
        Cause::ReversePathFilter,
        format!(
            "rp_filter is strict on {}: packets that come in there from an address that is routed elsewhere are dropped\
             {drops}",
            strict.join(", ")
        ),
        "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose) if a node has several ways to its clients; nstat -az \
         TcpExtIPReversePathFilter counts what was dropped",
    ))
}

/// A packet that the kernel drops for its addresses: it came in where its sender is not routed to, or it left with a
/// loopback address.
pub fn martian(facts: &Facts, packet: &Packet, trace: &Trace, paths: &Paths<'_>) -> Option<Finding> {
    if let Origin::Interface(name) = &packet.origin {
        let IpAddr::V4(source) = packet.source.ip() else { return None };
        let back = paths.node().out_interface(source.into());
        if back == Some(name)
            || facts.links.iter().all(|link| link.name != *name)
            || ipv4_setting(name, "rp_filter") != 1
        {
            return None;
        }
        let what = format!(
            "rp_filter is strict on {name}: {packet} is dropped, as packets to {source} leave by {}",
            back.unwrap_or("no interface")
        );
        let next = format!(
            "route {source} by {name}, or sysctl -w net.ipv4.conf.{name}.rp_filter=2 (and all.rp_filter, if it is 1)"
        );
        return Some(Finding::certain(Cause::ReversePathFilter, what, next));
    }
    if !packet.destination.ip().is_loopback() || packet.destination.is_ipv6() {
        return None;
    }
    let leaves = |to: IpAddr| paths.node().out_interface(to).filter(|_| !paths.node().is_local(to));
    let ends = trace.branches.iter().filter_map(|branch| match (&branch.unrouted, branch.outcome.verdict) {
        (Some(unrouted), _) => leaves(unrouted.to.ip()),
        (None, Verdict::Delivered(to)) => leaves(to.ip()),
        _ => None,
    });
    let link = ends.into_iter().find(|link| ipv4_setting(link, "route_localnet") == 0)?;
    Some(Finding::certain(
        Cause::RouteLocalnetOff,
        format!(
            "net.ipv4.conf.all.route_localnet is 0: the kernel drops {packet}, as loopback addresses may not leave by {link}"
        ),
        "sysctl -w net.ipv4.conf.all.route_localnet=1 (kube-proxy sets it when it starts, unless iptables.localhostNodePorts \
         is false), or use another address of the node",
    ))
}

/// Whether pods that are sent to themselves come out of the bridge again where they went in. Only where bridges show
/// packets to the rules do they not leave the bridge.
fn hairpin(facts: &Facts, views: &[ServicePortView]) -> Option<Finding> {
    let bridged = BRIDGED.iter().any(|(family, name)| {
        let used = |e: &EndpointView| e.used() && e.state.is_some_and(|state| state.local);
        let mut of_family = views.iter().filter(|view| view.family == *family);
        of_family.any(|view| view.endpoints.iter().any(used))
            && facts.sysctls.get(*name).is_some_and(|value| *value != 0)
    });
    let off: Vec<&str> =
        facts.links.iter().filter(|link| link.hairpin == Some(false) && link.up).map(|link| &*link.name).collect();
    (bridged && !off.is_empty()).then(|| {
        Finding::suspect(
            Cause::Hairpin,
            format!("hairpin mode is off at the bridge's ports {}: a pod behind one cannot reach itself through its Service, \
                     unless the bridge is promiscuous", off.join(", ")),
            "matters only to pods that call their own Service (to be sure, give one's address with --from): set hairpinMode \
             in the network plugin's configuration",
        )
    })
}

fn tunnels(facts: &Facts) -> Vec<Finding> {
    let is_tunnel = |kind: &Option<String>| OVERHEADS.iter().find(|(name, _)| kind.as_deref() == Some(name));
    let plain = facts.links.iter().filter(|link| link.up && link.name != "lo" && is_tunnel(&link.kind).is_none());
    let uplinks = plain.filter(|link| link.kind.is_none() || link.kind.as_deref() == Some("veth"));
    let Some(uplink) =
        uplinks.filter(|link| !link.addresses.is_empty() && link.master.is_none()).min_by_key(|link| link.mtu)
    else {
        return Vec::new();
    };
    let too_big = facts.links.iter().filter_map(|link| {
        let (kind, overhead) = is_tunnel(&link.kind).filter(|_| link.up)?;
        (link.mtu + overhead > uplink.mtu).then(|| {
            Finding::suspect(
                Cause::Mtu,
                format!(
                    "{} ({kind}) has an MTU of {}, which leaves no room for {overhead} bytes of header in the {} of {}: \
                     connections open and then hang with the first big packet",
                    link.name, link.mtu, uplink.mtu, uplink.name
                ),
                format!("set its MTU to {} at most, in the network plugin's configuration", uplink.mtu.saturating_sub(*overhead)),
            )
        })
    });
    too_big.collect()
}
