//! Encodes and decodes IPVS messages (`linux/ip_vs.h`).
//!
//! Decoders accept any bytes and return what is valid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::netlink::{Attributes, Request, genlmsghdr};
use super::{Info, Operation};
use crate::IpFamily;
use crate::ipvs::{
    Connections, Flags, Forward, ListedServer, Persistence, RealServer, Scheduler, ServerKey, Statistics, Timeouts,
    VirtualServer, netmask,
};

const IPVS_CMD_NEW_SERVICE: u8 = 1;
const IPVS_CMD_SET_SERVICE: u8 = 2;
const IPVS_CMD_DEL_SERVICE: u8 = 3;
const IPVS_CMD_GET_SERVICE: u8 = 4;
const IPVS_CMD_NEW_DEST: u8 = 5;
const IPVS_CMD_SET_DEST: u8 = 6;
const IPVS_CMD_DEL_DEST: u8 = 7;
const IPVS_CMD_GET_DEST: u8 = 8;
const IPVS_CMD_SET_CONFIG: u8 = 12;
const IPVS_CMD_GET_CONFIG: u8 = 13;
const IPVS_CMD_GET_INFO: u8 = 15;

const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;
const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;

const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_FWMARK: u16 = 5;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_FLAGS: u16 = 7;
const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
const IPVS_SVC_ATTR_NETMASK: u16 = 9;
const IPVS_SVC_ATTR_STATS: u16 = 10;
const IPVS_SVC_ATTR_STATS64: u16 = 12;

const IPVS_DEST_ATTR_ADDR: u16 = 1;
const IPVS_DEST_ATTR_PORT: u16 = 2;
const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
const IPVS_DEST_ATTR_ACTIVE_CONNS: u16 = 7;
const IPVS_DEST_ATTR_INACT_CONNS: u16 = 8;
const IPVS_DEST_ATTR_PERSIST_CONNS: u16 = 9;
const IPVS_DEST_ATTR_STATS: u16 = 10;
const IPVS_DEST_ATTR_ADDR_FAMILY: u16 = 11;
const IPVS_DEST_ATTR_STATS64: u16 = 12;

const IPVS_STATS_ATTR_CONNS: u16 = 1;
const IPVS_STATS_ATTR_INPKTS: u16 = 2;
const IPVS_STATS_ATTR_OUTPKTS: u16 = 3;
const IPVS_STATS_ATTR_INBYTES: u16 = 4;
const IPVS_STATS_ATTR_OUTBYTES: u16 = 5;

const IPVS_INFO_ATTR_VERSION: u16 = 1;
const IPVS_INFO_ATTR_CONN_TAB_SIZE: u16 = 2;

const IP_VS_SVC_F_PERSISTENT: u32 = 1;
const IP_VS_CONN_F_FWD_MASK: u32 = 7;

/// `struct genlmsghdr`
pub(super) const HEADER: usize = 4;

/// The request for an operation. `family` is the generic netlink family ID.
pub(super) fn request(family: u16, operation: &Operation) -> Request {
    let new = |command| Request::new(family, 0, &genlmsghdr(command));
    match operation {
        Operation::AddVirtual(server) => with_server(new(IPVS_CMD_NEW_SERVICE), server),
        Operation::UpdateVirtual(server) => with_server(new(IPVS_CMD_SET_SERVICE), server),
        Operation::DeleteVirtual(key) => with_key(new(IPVS_CMD_DEL_SERVICE), key),
        Operation::AddReal(key, real) => with_real(new(IPVS_CMD_NEW_DEST), key, real),
        Operation::UpdateReal(key, real) => with_real(new(IPVS_CMD_SET_DEST), key, real),
        Operation::DeleteReal(key, address) => {
            let mut request = with_key(new(IPVS_CMD_DEL_DEST), key);
            request.nested(IPVS_CMD_ATTR_DEST, |dest| destination(dest, *address));
            request
        }
    }
}

/// The request for all virtual servers; the kernel cannot filter by IP family.
pub(super) fn virtual_servers(family: u16) -> Request {
    Request::new(family, 0, &genlmsghdr(IPVS_CMD_GET_SERVICE))
}

/// The request for the real servers of a virtual server.
pub(super) fn real_servers(family: u16, of: &ServerKey) -> Request {
    with_key(Request::new(family, 0, &genlmsghdr(IPVS_CMD_GET_DEST)), of)
}

/// The request for version and size.
pub(super) fn info(family: u16) -> Request {
    Request::new(family, 0, &genlmsghdr(IPVS_CMD_GET_INFO))
}

/// Decodes version and size.
pub(super) fn read_info(message: Attributes<'_>) -> Option<Info> {
    let [_, major, minor, patch] = message.ne32(IPVS_INFO_ATTR_VERSION)?.to_be_bytes();
    Some(Info { version: [major, minor, patch], connection_table: message.ne32(IPVS_INFO_ATTR_CONN_TAB_SIZE)? })
}

/// The request for the timeouts.
pub(super) fn timeouts(family: u16) -> Request {
    Request::new(family, 0, &genlmsghdr(IPVS_CMD_GET_CONFIG))
}

/// The request to set the timeouts that are not 0.
pub(super) fn set_timeouts(family: u16, timeouts: Timeouts) -> Request {
    let mut request = Request::new(family, 0, &genlmsghdr(IPVS_CMD_SET_CONFIG));
    for (kind, seconds) in [
        (IPVS_CMD_ATTR_TIMEOUT_TCP, timeouts.tcp),
        (IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin),
        (IPVS_CMD_ATTR_TIMEOUT_UDP, timeouts.udp),
    ] {
        if seconds > 0 {
            request.attribute(kind, &seconds.to_ne_bytes());
        }
    }
    request
}

fn with_key(mut request: Request, key: &ServerKey) -> Request {
    request.nested(IPVS_CMD_ATTR_SERVICE, |service| put_key(service, key));
    request
}

fn put_key(service: &mut Request, key: &ServerKey) {
    service.attribute(IPVS_SVC_ATTR_AF, &family_of(key.address).to_ne_bytes());
    service.attribute(IPVS_SVC_ATTR_PROTOCOL, &u16::from(key.protocol).to_ne_bytes());
    service.attribute(IPVS_SVC_ATTR_ADDR, &bytes(key.address.ip()));
    service.attribute(IPVS_SVC_ATTR_PORT, &key.address.port().to_be_bytes());
}

fn with_server(mut request: Request, server: &VirtualServer) -> Request {
    let persistent = server.persistence.map_or(0, |_| IP_VS_SVC_F_PERSISTENT);
    let flags = server.flags.bits() | persistent;
    let prefix = server.persistence.map_or(server.address_bits(), |persistence| persistence.prefix);
    // A netmask in IPv4, a prefix length in IPv6.
    let netmask = match server.key.address {
        SocketAddr::V4(_) => netmask(prefix).octets(),
        SocketAddr::V6(_) => u32::from(prefix).to_ne_bytes(),
    };
    let seconds = server.persistence.map_or(0, |persistence| persistence.seconds);
    request.nested(IPVS_CMD_ATTR_SERVICE, |service| {
        put_key(service, &server.key);
        service.text(IPVS_SVC_ATTR_SCHED_NAME, server.scheduler.as_str());
        // struct ip_vs_flags: the flags and the mask of valid flags.
        service.attribute(IPVS_SVC_ATTR_FLAGS, &[flags.to_ne_bytes(), [0xff; 4]].concat());
        service.attribute(IPVS_SVC_ATTR_TIMEOUT, &seconds.to_ne_bytes());
        service.attribute(IPVS_SVC_ATTR_NETMASK, &netmask);
    });
    request
}

fn with_real(request: Request, key: &ServerKey, real: &RealServer) -> Request {
    let mut request = with_key(request, key);
    request.nested(IPVS_CMD_ATTR_DEST, |dest| {
        destination(dest, real.address);
        dest.attribute(IPVS_DEST_ATTR_FWD_METHOD, &forward_number(real.forward).to_ne_bytes());
        dest.attribute(IPVS_DEST_ATTR_WEIGHT, &real.weight.to_ne_bytes());
        // No connection thresholds; the attributes are mandatory.
        dest.attribute(IPVS_DEST_ATTR_U_THRESH, &[0; 4]).attribute(IPVS_DEST_ATTR_L_THRESH, &[0; 4]);
    });
    request
}

fn destination(dest: &mut Request, address: SocketAddr) {
    dest.attribute(IPVS_DEST_ATTR_ADDR, &bytes(address.ip()));
    dest.attribute(IPVS_DEST_ATTR_PORT, &address.port().to_be_bytes());
    dest.attribute(IPVS_DEST_ATTR_ADDR_FAMILY, &family_of(address).to_ne_bytes());
}

/// `union nf_inet_addr`, which holds an address of either family.
fn bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn family_of(address: SocketAddr) -> u16 {
    IpFamily::of(&address.ip()).nfproto().into()
}

fn address(family: u16, bytes: [u8; 16], port: [u8; 2]) -> Option<SocketAddr> {
    let ip = match IpFamily::of_nfproto(u8::try_from(family).ok()?)? {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(bytes)),
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
}

fn forward_number(forward: Forward) -> u32 {
    match forward {
        Forward::Masquerade => 0,
        Forward::Local => 1,
        Forward::Tunnel => 2,
        Forward::Route => 3,
        Forward::Bypass => 4,
    }
}

fn forward(number: u32) -> Option<Forward> {
    use Forward::{Bypass, Local, Masquerade, Route, Tunnel};
    [Masquerade, Local, Tunnel, Route, Bypass].into_iter().find(|known| forward_number(*known) == number)
}

/// A counter of 4 or 8 bytes.
fn count(attributes: Attributes<'_>, kind: u16) -> u64 {
    let long = attributes.find_array(kind).map(u64::from_ne_bytes);
    long.or_else(|| attributes.ne32(kind).map(u64::from)).unwrap_or_default()
}

fn short(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    attributes.find_array(kind).map(u16::from_ne_bytes)
}

/// Decodes a virtual server; `None` if it has no address.
pub(super) fn virtual_server(message: Attributes<'_>) -> Option<VirtualServer> {
    let service = message.nest(IPVS_CMD_ATTR_SERVICE)?;
    let family = short(service, IPVS_SVC_ATTR_AF)?;
    let address = address(family, service.find_array(IPVS_SVC_ATTR_ADDR)?, service.find_array(IPVS_SVC_ATTR_PORT)?)?;
    let protocol = u8::try_from(short(service, IPVS_SVC_ATTR_PROTOCOL)?).ok()?;
    let scheduler = scheduler(service)?;
    let flags: [u8; 8] = service.find_array(IPVS_SVC_ATTR_FLAGS)?;
    let flags = u32::from_ne_bytes([flags[0], flags[1], flags[2], flags[3]]);
    let netmask: [u8; 4] = service.find_array(IPVS_SVC_ATTR_NETMASK)?;
    let prefix = match address {
        SocketAddr::V4(_) => u32::from_be_bytes(netmask).leading_ones(),
        SocketAddr::V6(_) => u32::from_ne_bytes(netmask),
    };
    let persistence = Persistence { seconds: service.ne32(IPVS_SVC_ATTR_TIMEOUT)?, prefix: u8::try_from(prefix).ok()? };
    Some(VirtualServer {
        key: ServerKey { address, protocol },
        scheduler,
        flags: Flags::of_bits(flags),
        persistence: (flags & IP_VS_SVC_F_PERSISTENT != 0).then_some(persistence),
    })
}

/// Decodes a virtual server of this family with its counters.
pub(super) fn listed(message: Attributes<'_>, family: IpFamily) -> Option<ListedServer> {
    let service = message.nest(IPVS_CMD_ATTR_SERVICE)?;
    if short(service, IPVS_SVC_ATTR_AF)? != u16::from(family.nfproto()) {
        return None;
    }
    if let Some(mark) = service.ne32(IPVS_SVC_ATTR_FWMARK) {
        return Some(ListedServer::FirewallMark(mark, scheduler(service)?));
    }
    let counted = statistics(service, IPVS_SVC_ATTR_STATS64, IPVS_SVC_ATTR_STATS);
    Some(ListedServer::Server(virtual_server(message)?, counted))
}

fn scheduler(service: Attributes<'_>) -> Option<Scheduler> {
    let scheduler = service.find(IPVS_SVC_ATTR_SCHED_NAME)?;
    Scheduler::parse(std::str::from_utf8(scheduler).ok()?.trim_end_matches('\0'))
}

/// Decodes counters. Kernels before 4.1 send 32-bit values only.
fn statistics(server: Attributes<'_>, long: u16, short: u16) -> Statistics {
    let Some(counted) = server.nest(long).or_else(|| server.nest(short)) else { return Statistics::default() };
    Statistics {
        connections: count(counted, IPVS_STATS_ATTR_CONNS),
        packets: count(counted, IPVS_STATS_ATTR_INPKTS),
        bytes: count(counted, IPVS_STATS_ATTR_INBYTES),
        packets_back: count(counted, IPVS_STATS_ATTR_OUTPKTS),
        bytes_back: count(counted, IPVS_STATS_ATTR_OUTBYTES),
    }
}

/// Decodes the counters of a real server.
pub(super) fn real_statistics(message: Attributes<'_>) -> Statistics {
    let dest = message.nest(IPVS_CMD_ATTR_DEST);
    dest.map(|dest| statistics(dest, IPVS_DEST_ATTR_STATS64, IPVS_DEST_ATTR_STATS)).unwrap_or_default()
}

/// Decodes a real server. `family` is the virtual server's, because kernels before 3.18 do not send one.
pub(super) fn real_server(message: Attributes<'_>, family: IpFamily) -> Option<(RealServer, Connections)> {
    let dest = message.nest(IPVS_CMD_ATTR_DEST)?;
    let family = short(dest, IPVS_DEST_ATTR_ADDR_FAMILY).unwrap_or_else(|| family.nfproto().into());
    let address = address(family, dest.find_array(IPVS_DEST_ATTR_ADDR)?, dest.find_array(IPVS_DEST_ATTR_PORT)?)?;
    let real = RealServer {
        address,
        forward: forward(dest.ne32(IPVS_DEST_ATTR_FWD_METHOD)? & IP_VS_CONN_F_FWD_MASK)?,
        weight: dest.ne32(IPVS_DEST_ATTR_WEIGHT)?,
    };
    let connections = Connections {
        active: dest.ne32(IPVS_DEST_ATTR_ACTIVE_CONNS)?,
        inactive: dest.ne32(IPVS_DEST_ATTR_INACT_CONNS)?,
        persistent: dest.ne32(IPVS_DEST_ATTR_PERSIST_CONNS)?,
    };
    Some((real, connections))
}

/// Decodes the timeouts.
pub(super) fn read_timeouts(message: Attributes<'_>) -> Option<Timeouts> {
    Some(Timeouts {
        tcp: message.ne32(IPVS_CMD_ATTR_TIMEOUT_TCP)?,
        tcp_fin: message.ne32(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN)?,
        udp: message.ne32(IPVS_CMD_ATTR_TIMEOUT_UDP)?,
    })
}

#[cfg(feature = "testing")]
pub(in crate::kernel) mod fuzzing;
#[cfg(test)]
mod tests;
