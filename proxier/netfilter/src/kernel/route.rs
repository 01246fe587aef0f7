//! Route lookups: where the kernel sends packets to one address.
//!
//! Unlike the table in `/proc/net/route`, a lookup follows policy rules and knows routes that refuse packets.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Netlink, NetlinkError, Request};
use super::node;
use crate::IpFamily;

const RTM_GETROUTE: u16 = 26;
const RTM_GETRULE: u16 = 34;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
/// Answers with the entry of the table that matched, not with the cached route.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTN_LOCAL: u8 = 2;
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

/// Whether the family has policy rules besides the kernel's own: then packets of others may go another way.
///
/// # Errors
/// If the kernel does not answer.
pub fn has_policy_rules(family: IpFamily) -> io::Result<bool> {
    let mut header = [0; RTMSG];
    header[0] = family.nfproto();
    let mut rules = 0;
    Netlink::open(NETLINK_ROUTE)?.dump_once(&Request::new(RTM_GETRULE, 0, &header), &mut |_| {
        rules += 1;
        Ok(())
    })?;
    Ok(STANDARD_RULES.iter().any(|(of, standard)| *of == family && rules > *standard))
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
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    header[1] = u8::try_from(octets.len() * 8).unwrap_or_default();
    let mut request = Request::new(RTM_GETROUTE, 0, &header);
    request.attribute(RTA_DST, &octets);
    let mut found = None;
    Netlink::open(NETLINK_ROUTE)?.query(&request, &mut |received| {
        let (Some(kind), Some(length)) = (received.payload.get(7), received.payload.get(1)) else { return Ok(()) };
        let device = received.attributes(RTMSG).find_array(RTA_OIF).map(u32::from_ne_bytes);
        found = Some((*kind, device, *length));
        Ok(())
    })?;
    Ok(found)
}
