//! Route lookups: where the kernel sends packets to one address.
//!
//! Unlike the table in `/proc/net/route`, a lookup follows policy rules and knows routes that refuse packets.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Netlink, NetlinkError, Request};
use super::node;
use crate::IpFamily;
use crate::route::{PolicySelectors, RouteDecision, RouteQuery};

const RTM_GETROUTE: u16 = 26;
const RTM_GETRULE: u16 = 34;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_MARK: u16 = 16;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
/// Attributes of policy rules.
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
/// A lookup takes no other protocols (`rtm_getroute_parse_ip_proto`).
const TAKEN_PROTOCOLS: [u8; 2] = [6, 17];
/// Linux takes ports in lookups as of this version; earlier ones ignore them.
const TAKES_PORTS: (u32, u32) = (4, 18);
/// Answers with the entry of the table that matched, not with the cached route.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTN_LOCAL: u8 = 2;
const RTN_BROADCAST: u8 = 3;
const RTN_ANYCAST: u8 = 4;
const RTN_MULTICAST: u8 = 5;
const RTN_BLACKHOLE: u8 = 6;
const RTN_UNREACHABLE: u8 = 7;
const RTN_PROHIBIT: u8 = 8;
/// The size of `struct rtmsg`: family, lengths, tos, table, protocol, scope, type, flags.
const RTMSG: usize = 12;
/// The policy rules that every network namespace has: for tables local, main and default; IPv6 has no default.
const STANDARD_RULES: [(IpFamily, usize); 2] = [(IpFamily::V4, 3), (IpFamily::V6, 2)];

/// What the kernel does with packets to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// They leave by this interface; `default`: because no route is closer than the default one.
    Leaves {
        /// The interface.
        device: String,
        /// Whether the default route was taken.
        default: bool,
    },
    /// They are for this node.
    Local,
    /// They are dropped without an error.
    Blackhole,
    /// The sender gets "host unreachable".
    Unreachable,
    /// The sender gets "administratively prohibited".
    Prohibited,
    /// No route matches.
    Missing,
}

/// Looks up routes in the kernel. For incoming packets this includes the checks of their source: the reverse path filter,
/// and addresses that may not come from another host.
#[derive(Debug)]
pub struct RouteTable {
    socket: Netlink,
    interfaces: std::collections::BTreeMap<String, u32>,
    family: IpFamily,
    selectors: PolicySelectors,
}

impl RouteTable {
    /// Opens it for a family in the calling thread's network namespace.
    ///
    /// # Errors
    /// If there is no such socket, or interfaces or policy rules cannot be listed.
    pub fn open(family: IpFamily) -> io::Result<Self> {
        let (socket, interfaces) = (Netlink::open(NETLINK_ROUTE)?, node::interfaces()?);
        Ok(Self { socket, interfaces, family, selectors: policy_selectors(family)? })
    }

    /// What becomes of such a packet.
    ///
    /// # Errors
    /// If the kernel does not answer, takes no ports that policy rules choose by, or the interface does not exist.
    pub fn decide(&mut self, query: &RouteQuery) -> io::Result<RouteDecision> {
        if self.selectors.by_transport {
            takes_transport(query.transport.0)?;
        }
        let decision = self.look_up(query)?;
        let Some(name) = query.in_interface.as_ref().filter(|_| decision != RouteDecision::Local) else {
            return Ok(decision);
        };
        Ok(if node::forwards(self.family, name) { decision } else { RouteDecision::Dropped(FORWARDING_OFF) })
    }

    fn look_up(&mut self, query: &RouteQuery) -> io::Result<RouteDecision> {
        let mut header = [0; RTMSG];
        header[0] = IpFamily::of(&query.to).nfproto();
        header[1] = length(query.to);
        header[2] = query.from.map(length).unwrap_or_default();
        header[3] = query.type_of_service;
        let mut request = Request::new(RTM_GETROUTE, 0, &header);
        request.attribute(RTA_DST, &octets(query.to));
        if let Some(from) = query.from {
            request.attribute(RTA_SRC, &octets(from));
        }
        if let Some(name) = &query.in_interface {
            let index = self.interfaces.get(name).ok_or_else(|| io::Error::other(format!("no interface {name}")))?;
            request.attribute(RTA_IIF, &index.to_ne_bytes());
        }
        request.attribute(RTA_MARK, &query.mark.to_ne_bytes());
        let (protocol, source_port, port) = query.transport;
        if TAKEN_PROTOCOLS.contains(&protocol) {
            request.attribute(RTA_IP_PROTO, &[protocol]);
            request.attribute(RTA_SPORT, &source_port.to_be_bytes());
            request.attribute(RTA_DPORT, &port.to_be_bytes());
        }
        let mut found = None;
        let asked = self.socket.query(&request, &mut |received| {
            let kind = received.payload.get(7).copied();
            found = kind.zip(Some(received.attributes(RTMSG).find_array(RTA_OIF).map(u32::from_ne_bytes)));
            Ok(())
        });
        if let Err(error) = asked {
            return refused(&error, query.in_interface.is_some()).ok_or_else(|| error.into());
        }
        let (kind, device) = found.ok_or_else(|| io::Error::other("the kernel answered no route"))?;
        let name = || self.interfaces.iter().find(|(_, index)| Some(**index) == device).map(|(name, _)| name.clone());
        Ok(match kind {
            RTN_LOCAL | RTN_BROADCAST | RTN_ANYCAST | RTN_MULTICAST => RouteDecision::Local,
            RTN_BLACKHOLE => RouteDecision::Dropped("a blackhole route"),
            RTN_UNREACHABLE => RouteDecision::Refused("an unreachable route"),
            RTN_PROHIBIT => RouteDecision::Refused("a prohibit route"),
            _ => RouteDecision::Leaves(name().ok_or_else(|| io::Error::other("the route has no known interface"))?),
        })
    }
}

/// Why a packet is dropped that came in on an interface which forwards none.
pub const FORWARDING_OFF: &str = "forwarding is off on its interface";

/// Fails where a lookup does not take the protocol and the ports of a packet.
fn takes_transport(protocol: u8) -> io::Result<()> {
    if protocol == 0 {
        return Ok(());
    }
    if !TAKEN_PROTOCOLS.contains(&protocol) {
        let why = format!("policy rules choose by protocol or port, and a lookup takes no protocol {protocol}");
        return Err(io::Error::other(why));
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if version(&release).is_some_and(|version| version < TAKES_PORTS) {
        let why = format!(
            "policy rules choose by protocol or port, and a lookup of Linux {} takes none (4.18 does)",
            release.trim()
        );
        return Err(io::Error::other(why));
    }
    Ok(())
}

/// The first two numbers of a release such as `5.15.0-91-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(['.', '-']).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What an error of a lookup means for packets.
fn refused(error: &NetlinkError, came_in: bool) -> Option<RouteDecision> {
    Some(match error.errno()? {
        libc::EXDEV => RouteDecision::Dropped("the reverse path filter"),
        libc::EINVAL if came_in => {
            RouteDecision::Dropped("an address that may not come in there, or a blackhole route")
        }
        libc::EINVAL => RouteDecision::Dropped("an address that may not leave there, or a blackhole route"),
        libc::EHOSTUNREACH => RouteDecision::Refused("an unreachable route, or none"),
        libc::EACCES => RouteDecision::Refused("a prohibit route"),
        libc::ENETUNREACH => RouteDecision::Refused("no route"),
        _ => return None,
    })
}

fn length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Looks up the route to an address, as for packets that this node sends.
///
/// # Errors
/// If the kernel does not answer.
pub fn route_to(ip: IpAddr) -> io::Result<Route> {
    let (kind, device) = match lookup(ip, 0) {
        Ok(Some((kind, device, _))) => (kind, device),
        Ok(None) => return Err(io::Error::other("the kernel answered no route")),
        Err(error) => return refusal(&error).ok_or_else(|| error.into()),
    };
    if kind == RTN_LOCAL {
        return Ok(Route::Local);
    }
    let matched = lookup(ip, RTM_F_FIB_MATCH).ok().flatten();
    let default = matched.is_some_and(|(_, _, length)| length == 0);
    let names = node::interfaces()?;
    let name = names.into_iter().find(|(_, index)| Some(*index) == device).map(|(name, _)| name);
    Ok(Route::Leaves { device: name.unwrap_or_else(|| "an unknown interface".to_owned()), default })
}

/// What the family's policy rules choose by.
///
/// # Errors
/// If the kernel does not answer.
pub fn policy_selectors(family: IpFamily) -> io::Result<PolicySelectors> {
    let mut header = [0; RTMSG];
    header[0] = family.nfproto();
    let (mut rules, mut found) = (0, PolicySelectors::default());
    Netlink::open(NETLINK_ROUTE)?.dump_once(&Request::new(RTM_GETRULE, 0, &header), &mut |received| {
        rules += 1;
        let attributes = received.attributes(RTMSG);
        let has = |kind| attributes.find(kind).is_some();
        found.by_source_port |= has(FRA_SPORT_RANGE);
        found.by_transport |= has(FRA_IP_PROTO) || has(FRA_SPORT_RANGE) || has(FRA_DPORT_RANGE);
        found.by_user |= has(FRA_UID_RANGE);
        Ok(())
    })?;
    found.any = STANDARD_RULES.iter().any(|(of, standard)| *of == family && rules > *standard);
    Ok(found)
}

/// Whether the family has policy rules besides the kernel's own: then packets of others may go another way.
///
/// # Errors
/// If the kernel does not answer.
pub fn has_policy_rules(family: IpFamily) -> io::Result<bool> {
    policy_selectors(family).map(|selectors| selectors.any)
}

/// What a refused lookup means.
fn refusal(error: &NetlinkError) -> Option<Route> {
    match error.errno()? {
        libc::EINVAL => Some(Route::Blackhole),
        libc::EHOSTUNREACH => Some(Route::Unreachable),
        libc::EACCES => Some(Route::Prohibited),
        libc::ENETUNREACH => Some(Route::Missing),
        _ => None,
    }
}

/// The kind of the route, the interface's index, and the length of the network that matched.
type Found = (u8, Option<u32>, u8);

fn lookup(ip: IpAddr, flags: u32) -> Result<Option<Found>, NetlinkError> {
    let mut header = [0; RTMSG];
    header[0] = IpFamily::of(&ip).nfproto();
    header[8..].copy_from_slice(&flags.to_ne_bytes());
    header[1] = length(ip);
    let mut request = Request::new(RTM_GETROUTE, 0, &header);
    request.attribute(RTA_DST, &octets(ip));
    let mut found = None;
    Netlink::open(NETLINK_ROUTE)?.query(&request, &mut |received| {
        let (Some(kind), Some(length)) = (received.payload.get(7), received.payload.get(1)) else { return Ok(()) };
        let device = received.attributes(RTMSG).find_array(RTA_OIF).map(u32::from_ne_bytes);
        found = Some((*kind, device, *length));
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_take_ports_as_of_linux_4_18() {
        let takes = |release: &str| version(release).is_none_or(|version| version >= TAKES_PORTS);
        assert!(takes("4.18.0-553.el8.x86_64") && takes("6.8.0-45-generic") && takes("10.1"));
        assert!(!takes("4.15.0-213-generic") && !takes("3.10.0-1160.el7.x86_64"));
        assert!(takes_transport(132).is_err(), "a lookup takes no SCTP");
    }
}
