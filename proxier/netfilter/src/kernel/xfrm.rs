//! Reads IPsec policies (`ip xfrm policy`).

use std::io;

use ipnet::IpNet;

use super::netlink::{Netlink, Received, Request};
use crate::IpFamily;
use crate::xfrm::{XfrmAction, XfrmDirection, XfrmPolicy, address};

const NETLINK_XFRM: isize = 6;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// The size of `struct xfrm_userpolicy_id`.
const POLICY_ID: usize = 64;
/// The size of `struct xfrm_userpolicy_info`.
const POLICY_INFO: usize = 168;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;

/// The policies of a family, in the order in which equal priorities are looked at.
///
/// To open a socket of this kind would load the kernel's module; without it, `ip xfrm` has set no policy.
///
/// # Errors
/// If the kernel does not list them.
pub fn policies(family: IpFamily) -> io::Result<Vec<XfrmPolicy>> {
    if !is_available()? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let request = Request::new(XFRM_MSG_GETPOLICY, 0, &[0; POLICY_ID]);
    Netlink::open(NETLINK_XFRM)?.dump_once(&request, &mut |received| {
        found.extend(policy(received, family));
        Ok(())
    })?;
    Ok(found)
}

/// Whether the kernel has its end of such sockets here.
fn is_available() -> io::Result<bool> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink")?;
    let protocol = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse::<isize>().ok());
    Ok(text.lines().any(|line| protocol(line) == Some(NETLINK_XFRM)))
}

/// Decodes `struct xfrm_userpolicy_info`; `None`: it is of another family, or of a socket.
pub(super) fn policy(received: &Received<'_>, family: IpFamily) -> Option<XfrmPolicy> {
    let bytes = received.payload;
    let be16 = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let ne32 = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let of: u16 = bytes.get(40..42)?.try_into().ok().map(u16::from_ne_bytes)?;
    if of != u16::from(family.nfproto()) {
        return None;
    }
    let net = |at: usize, length: usize| {
        let address = address(bytes.get(at..at + 16)?.try_into().ok()?, family == IpFamily::V4);
        IpNet::new(address, *bytes.get(length)?).ok()
    };
    let direction = match bytes.get(160)? {
        0 => XfrmDirection::In,
        1 => XfrmDirection::Out,
        2 => XfrmDirection::Forward,
        _ => return None,
    };
    let attributes = received.attributes(POLICY_INFO);
    let action = match bytes.get(161)? {
        0 if attributes.find(XFRMA_TMPL).is_some_and(|templates| !templates.is_empty()) => XfrmAction::Transform,
        0 => XfrmAction::Allow,
        _ => XfrmAction::Block,
    };
    let mark = attributes.find_array::<8>(XFRMA_MARK).unwrap_or_default();
    let half = |at: usize| mark.get(at..at + 4).and_then(|half| half.try_into().ok()).map(u32::from_ne_bytes);
    let interface = attributes.find_array::<4>(XFRMA_IF_ID).map_or(0, u32::from_ne_bytes);
    Some(XfrmPolicy {
        direction,
        action,
        priority: ne32(152)?,
        source: net(16, 43)?,
        destination: net(0, 42)?,
        protocol: *bytes.get(44)?,
        source_port: (be16(36)?, be16(38)?),
        destination_port: (be16(32)?, be16(34)?),
        mark: (half(0)?, half(4)?),
        of_interface: ne32(48)? != 0 || interface != 0,
    })
}
