//! The next hop of packets to an address, and what the kernel's neighbour table says of it.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Netlink, Request};
use super::node;
use crate::IpFamily;

const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
/// The sizes of `struct rtmsg` and `struct ndmsg`.
const RTMSG: usize = 12;
const NDMSG: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
/// Answers with the entry of the table that matched, not with the cached route.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTN_UNICAST: u8 = 1;
const NDA_DST: u16 = 1;
const NDA_CACHEINFO: u16 = 3;
const NUD_INCOMPLETE: u16 = 1;
const NUD_FAILED: u16 = 0x20;
/// The kernel counts ages in hundredths of a second (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// The machine or pod that packets to an address are handed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that they leave by.
    pub device: String,
    /// The router, or the destination itself.
    pub address: IpAddr,
    /// Whether the route has several next hops, of which this is one.
    pub is_one_of_several: bool,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its state.
    pub state: NeighbourState,
    /// The time since its state changed.
    pub age: Duration,
}

/// The states of neighbours, as far as they tell whether one answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// The kernel asked for its link address, and nothing answered.
    Failed,
    /// The kernel asks for its link address now.
    Incomplete,
    /// Any other: it answered at some time, or needs no link address.
    Other,
}

/// Looks up the next hop of packets that this node sends; `None` if they do not leave the node.
///
/// # Errors
/// If the kernel does not answer.
pub fn next_hop(to: IpAddr) -> io::Result<Option<NextHop>> {
    let mut answer = (0, None, None, false);
    for flags in [0, RTM_F_FIB_MATCH] {
        let mut header = [0; RTMSG];
        header[0] = IpFamily::of(&to).nfproto();
        header[1] = if to.is_ipv4() { 32 } else { 128 };
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        let mut request = Request::new(RTM_GETROUTE, 0, &header);
        request.attribute(RTA_DST, &octets(to));
        let asked = Netlink::open(NETLINK_ROUTE)?.query(&request, &mut |received| {
            let attributes = received.attributes(RTMSG);
            if flags == RTM_F_FIB_MATCH {
                answer.3 = attributes.find(RTA_MULTIPATH).is_some();
                return Ok(());
            }
            let via = attributes.find(RTA_VIA).and_then(|via| address(via.get(2..)?));
            answer.0 = received.payload.get(7).copied().unwrap_or_default();
            answer.1 = attributes.find_array(RTA_OIF).map(u32::from_ne_bytes);
            answer.2 = attributes.find(RTA_GATEWAY).and_then(address).or(via);
            Ok(())
        });
        match asked {
            Ok(()) => {}
            // No route, or one that refuses.
            Err(error) if error.errno().is_some() => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    let (kind, device, gateway, is_one_of_several) = answer;
    let names = node::interfaces()?;
    let device = names.into_iter().find(|(_, index)| Some(*index) == device).map(|(name, _)| name);
    let hop = |device| NextHop { device, address: gateway.unwrap_or(to), is_one_of_several };
    Ok(device.filter(|_| kind == RTN_UNICAST).map(hop))
}

/// The neighbour table's entry of an address on an interface; `None` if there is none.
///
/// # Errors
/// If the table cannot be listed, or the interface does not exist.
pub fn neighbour(address: IpAddr, device: &str) -> io::Result<Option<Neighbour>> {
    let index = nix::net::if_::if_nametoindex(device)?;
    let mut header = [0; NDMSG];
    header[0] = IpFamily::of(&address).nfproto();
    let mut found = None;
    Netlink::open(NETLINK_ROUTE)?.dump_once(&Request::new(RTM_GETNEIGH, 0, &header), &mut |received| {
        let Some((on, attributes)) = node::neighbour(received) else { return Ok(()) };
        if on != index || attributes.find(NDA_DST) != Some(&octets(address)) {
            return Ok(());
        }
        let state = received.payload.get(8..10).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        // `struct nda_cacheinfo`: since it was confirmed, used and updated, and the number of references.
        let ticks = attributes.find(NDA_CACHEINFO).and_then(|info| info.get(8..12)?.try_into().ok());
        let age = TICK * ticks.map(u32::from_ne_bytes).unwrap_or_default();
        found = state.map(|state| Neighbour { state: NeighbourState::of(state), age });
        Ok(())
    })?;
    Ok(found)
}

impl NeighbourState {
    fn of(state: u16) -> Self {
        match state {
            state if state & NUD_FAILED != 0 => Self::Failed,
            state if state & NUD_INCOMPLETE != 0 => Self::Incomplete,
            _ => Self::Other,
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An address of either family in an attribute.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
