//! Interfaces whose packets the kernel does not forward.

use std::net::IpAddr;

use netfilter::IpFamily;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::lookups::{FORWARDING_OFF, forwards};
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Origin, Unrouted};

use super::finding::{Cause, Finding};

/// What a write of 0 turns off everywhere, by family.
const SWITCHES: [(IpFamily, &str); 2] =
    [(IpFamily::V4, "net/ipv4/ip_forward"), (IpFamily::V6, "net/ipv6/conf/all/forwarding")];

/// Whether forwarding was what stopped a packet.
pub fn is_off(unrouted: &Unrouted) -> bool {
    unrouted.why == FORWARDING_OFF
}

/// Families of which the node forwards nothing, whatever interface it comes in on. Without endpoints nothing has to be
/// forwarded, nor without an address of the family.
pub fn of_node(facts: &Facts, views: &[ServicePortView]) -> Vec<Finding> {
    let used = |family: IpFamily| {
        let has_endpoints = |view: &ServicePortView| view.family == family.name() && super::has_used_endpoints(view);
        views.iter().any(has_endpoints) && has_address(facts, family)
    };
    SWITCHES.into_iter().filter(|(family, _)| used(*family)).filter_map(|(family, _)| all(facts, family)).collect()
}

/// Whether the node has an address of a family besides those of loopback and of single links.
fn has_address(facts: &Facts, family: IpFamily) -> bool {
    let mut addresses = facts.links.iter().flat_map(|link| &link.addresses);
    addresses.any(|ip| IpFamily::of(ip) == family && is_routed(*ip))
}

/// Whether an address is neither of loopback nor of a single link.
pub fn is_routed(ip: IpAddr) -> bool {
    let is_of_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !is_of_link
}

/// A packet that came in on an interface that forwards none.
pub fn stopped(facts: &Facts, branch: &Branch, origin: &Origin) -> Option<Finding> {
    let unrouted = branch.unrouted.as_ref().filter(|unrouted| is_off(unrouted))?;
    let Origin::Interface(name) = origin else { return None };
    let family = IpFamily::of(&unrouted.to.ip());
    if !has_address(facts, family) {
        return None;
    }
    let finding = all(facts, family).unwrap_or_else(|| {
        let setting = format!("net/{}/conf/{name}/forwarding", if family == IpFamily::V4 { "ipv4" } else { "ipv6" });
        Finding::certain(
            Cause::IpForwardOff,
            format!("{family}: {setting} is 0: this node forwards no packets that come in on {name}"),
            format!("sysctl -w {setting}=1, and find out what turned it off"),
        )
    });
    Some(Finding { certain: branch.is_certain(), ..finding })
}

/// That no interface forwards packets of a family.
fn all(facts: &Facts, family: IpFamily) -> Option<Finding> {
    let (_, name) = SWITCHES.into_iter().find(|(of, _)| *of == family)?;
    let off = facts.sysctls.get(name) == Some(&0);
    if !off || facts.links.iter().any(|link| link.name != "lo" && forwards(family, &link.name)) {
        return None;
    }
    Some(Finding::certain(
        Cause::IpForwardOff,
        format!("{family}: {name} is 0: this node forwards no packets, so none from pods or from outside"),
        format!("sysctl -w {}=1, and find out what turned it off", name.replace('/', ".")),
    ))
}
