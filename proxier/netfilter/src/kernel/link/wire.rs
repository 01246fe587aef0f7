//! Encodes and decodes rtnetlink messages about devices and addresses (`linux/rtnetlink.h`).
//!
//! Decoders accept any bytes and return what is valid.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::netlink::{Attributes, NLM_F_CREATE, NLM_F_EXCL, Request};
use super::{AddressOperation, DUMMY, Device, DeviceName};
use crate::IpFamily;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// `struct ifinfomsg`: family, padding, type, index, flags, change mask.
const LINK_HEADER: usize = 16;
/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
const ADDRESS_HEADER: usize = 8;

fn ifinfomsg(index: u32, flags: u32, meant: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    for (at, number) in [(4, index), (8, flags), (12, meant)] {
        header[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    header
}

fn ifaddrmsg(family: IpFamily, prefix: u8, index: u32) -> [u8; ADDRESS_HEADER] {
    let [a, b, c, d] = index.to_ne_bytes();
    // Scope global (0).
    [family.nfproto(), prefix, 0, 0, a, b, c, d]
}

/// The request for a device.
pub(super) fn get_device(name: DeviceName) -> Request {
    let mut request = Request::new(RTM_GETLINK, 0, &ifinfomsg(0, 0, 0));
    request.text(IFLA_IFNAME, name.as_str());
    request
}

/// Decodes a device.
pub(super) fn device(payload: &[u8]) -> Option<Device> {
    let header = payload.get(..LINK_HEADER)?;
    let kind =
        Attributes::new(payload.get(LINK_HEADER..)?).nest(IFLA_LINKINFO).and_then(|info| info.find(IFLA_INFO_KIND));
    let kind = kind.map(|kind| String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned());
    Some(Device { index: number(header, 4)?, kind, up: number(header, 8)? & IFF_UP != 0 })
}

/// The request to create a dummy device that does not exist.
pub(super) fn create_dummy(name: DeviceName) -> Request {
    let mut request = Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfomsg(0, 0, 0));
    request.text(IFLA_IFNAME, name.as_str());
    request.nested(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, DUMMY);
    });
    request
}

/// The request to delete a device.
pub(super) fn delete_device(index: u32) -> Request {
    Request::new(RTM_DELLINK, 0, &ifinfomsg(index, 0, 0))
}

/// The request to set a device up or down.
pub(super) fn set_up(index: u32, up: bool) -> Request {
    Request::new(RTM_NEWLINK, 0, &ifinfomsg(index, if up { IFF_UP } else { 0 }, IFF_UP))
}

/// The request for the addresses of a device in a family.
pub(super) fn get_addresses(index: u32, family: IpFamily) -> Request {
    Request::new(RTM_GETADDR, 0, &ifaddrmsg(family, 0, index))
}

/// Decodes an address of this device and family: old kernels list all of them.
pub(super) fn address(payload: &[u8], index: u32, family: IpFamily) -> Option<IpNet> {
    let header = payload.get(..ADDRESS_HEADER)?;
    if header[0] != family.nfproto() || number(header, 4)? != index {
        return None;
    }
    let attributes = Attributes::new(payload.get(ADDRESS_HEADER..)?);
    let ip = |kind| match family {
        IpFamily::V4 => attributes.find_array::<4>(kind).map(IpAddr::from),
        IpFamily::V6 => attributes.find_array::<16>(kind).map(IpAddr::from),
    };
    // On a point-to-point link, IFA_ADDRESS is the peer's address.
    IpNet::new(ip(IFA_LOCAL).or_else(|| ip(IFA_ADDRESS))?, header[1]).ok()
}

/// The request for an operation.
pub(super) fn change(index: u32, operation: &AddressOperation) -> Request {
    let (kind, flags, net) = match operation {
        AddressOperation::Add(net) => (RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, net),
        AddressOperation::Delete(net) => (RTM_DELADDR, 0, net),
    };
    let mut request = Request::new(kind, flags, &ifaddrmsg(IpFamily::of_net(net), net.prefix_len(), index));
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        match net.addr() {
            IpAddr::V4(ip) => request.attribute(attribute, &ip.octets()),
            IpAddr::V6(ip) => request.attribute(attribute, &ip.octets()),
        };
    }
    request
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?))
}

/// Decodes a message about a device or an address.
///
/// # Panics
/// If an address differs after encoding and decoding it again.
#[cfg(feature = "testing")]
pub(in crate::kernel) fn fuzz(payload: &[u8]) {
    let _ = device(payload);
    let index = number(payload, 4).unwrap_or_default();
    for family in IpFamily::ALL {
        if let Some(net) = address(payload, index, family) {
            let again = change(index, &AddressOperation::Add(net)).into_attributes();
            assert_eq!(address(&again, index, family), Some(net));
        }
    }
}

#[cfg(test)]
mod tests;
