//! Encodes and decodes target extensions.

use std::net::SocketAddr;

use super::matches::{address, octets};
use super::structure::{Extension, array, u32_at};
use crate::IpFamily;
use crate::iptables::Target;
use crate::kernel::nftables::uapi::*;

/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`
const NAT_RANGE: u32 = 3;

/// Encodes a target that is an extension; `None` for a verdict or a jump.
pub(super) fn encode(family: IpFamily, target: &Target) -> Option<Extension> {
    let mark =
        |mark: u32, mask: u32| Extension::new("MARK", 2, 8).put(0, &mark.to_ne_bytes()).put(4, &mask.to_ne_bytes());
    Some(match target {
        Target::Jump(_) | Target::Accept | Target::Drop | Target::Return => return None,
        Target::Reject(_) => {
            // The enumerations ipt_reject_with and ip6t_reject_with; ICMP's own codes happen to be the same.
            Extension::new("REJECT", 0, 8).put(0, &u32::from(family.port_unreachable()).to_ne_bytes())
        }
        Target::SetMark(value) => mark(*value, *value),
        Target::FlipMark(value) => mark(*value, 0),
        Target::Masquerade { random_fully } => {
            let flags = if *random_fully { NF_NAT_RANGE_PROTO_RANDOM_FULLY } else { 0 }.to_ne_bytes();
            match family {
                // nf_nat_ipv4_multi_range_compat with one range.
                IpFamily::V4 => Extension::new("MASQUERADE", 0, 24).put(0, &1_u32.to_ne_bytes()).put(4, &flags),
                IpFamily::V6 => Extension::new("MASQUERADE", 0, 40).put(0, &flags),
            }
        }
        Target::Dnat(to) => {
            let (ip, port) = (octets(to.ip()), to.port().to_be_bytes());
            let range = Extension::new("DNAT", 2, 48).put(0, &NAT_RANGE.to_ne_bytes());
            range.put(4, &ip).put(20, &ip).put(36, &port).put(38, &port)
        }
    })
}

/// Decodes a target extension; `None` if it is not understood to the last bit.
pub(super) fn decode(family: IpFamily, (name, revision, bytes): (&str, u32, &[u8])) -> Option<Target> {
    let candidate = match name {
        "REJECT" => Target::Reject(family),
        "MARK" if u32_at(bytes, 4) == 0 => Target::FlipMark(u32_at(bytes, 0)),
        "MARK" => Target::SetMark(u32_at(bytes, 0)),
        "MASQUERADE" => {
            let at = if family == IpFamily::V4 { 4 } else { 0 };
            Target::Masquerade { random_fully: u32_at(bytes, at) & NF_NAT_RANGE_PROTO_RANDOM_FULLY != 0 }
        }
        "DNAT" => {
            let port = u16::from_be_bytes(array(bytes, 36));
            Target::Dnat(SocketAddr::new(address(family, array(bytes, 4)), port))
        }
        _ => return None,
    };
    encode(family, &candidate).filter(|again| again.is(name, revision, bytes)).map(|_| candidate)
}
