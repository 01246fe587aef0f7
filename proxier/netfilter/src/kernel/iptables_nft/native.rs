//! Encodes and decodes the native expressions: addresses, interfaces, the protocol, marks and ports.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expressions as write;
use super::matches::address;
use crate::IpFamily;
use crate::iptables::{Match, Negatable, Rule};
use crate::kernel::netlink::{Attributes, Request};
use crate::kernel::nftables::uapi::*;
use crate::rule_text::PROTOCOLS;

/// `IFNAMSIZ` without the NUL.
const INTERFACE_MAX: usize = 15;

/// The offsets in the network header of the source, the destination and the protocol, and the length of an address.
const fn offsets(family: IpFamily) -> (u32, u32, u32, usize) {
    match family {
        IpFamily::V4 => (12, 16, 9, 4),
        IpFamily::V6 => (8, 24, 6, 16),
    }
}

/// Encodes a rule's addresses, interface and protocol as iptables 1.8.7 and 1.8.8 do, which every version reads.
///
/// Returns the number of the protocol, 0 for any.
///
/// # Errors
/// The reason why a part cannot be encoded.
pub(super) fn encode(family: IpFamily, rule: &Rule, list: &mut Request) -> Result<u8, String> {
    if let Some(Negatable { not, value }) = &rule.in_interface {
        let prefix = value.strip_suffix('+');
        if prefix.unwrap_or(value).is_empty() || value.len() > INTERFACE_MAX {
            return Err(format!("interface name {value}"));
        }
        write::meta(list, NFT_META_IIFNAME);
        match prefix {
            Some(prefix) => write::compare(list, *not, prefix.as_bytes()),
            None => write::compare(list, *not, &[value.as_bytes(), &[0]].concat()),
        }
    }
    let number = match rule.protocol {
        None => 0,
        Some(name) => {
            let known = PROTOCOLS.iter().find(|(known, _)| *known == name);
            let (_, number) = known.ok_or_else(|| format!("unknown protocol {name}"))?;
            write::meta(list, NFT_META_L4PROTO);
            write::compare(list, false, &[*number]);
            *number
        }
    };
    let (source, destination, _, length) = offsets(family);
    for (net, offset) in [(&rule.source, source), (&rule.destination, destination)] {
        let Some(Negatable { not, value }) = net else { continue };
        if IpFamily::of_net(value) != family {
            return Err(format!("{value} is of another family"));
        }
        write::payload(list, offset, u32::try_from(length).unwrap_or(u32::MAX));
        if value.prefix_len() != value.max_prefix_len() {
            with_octets(value.netmask(), |mask| write::bitwise(list, mask));
        }
        with_octets(value.network(), |address| write::compare(list, *not, address));
    }
    Ok(number)
}

fn with_octets<T>(ip: IpAddr, take: impl FnOnce(&[u8]) -> T) -> T {
    match ip {
        IpAddr::V4(ip) => take(&ip.octets()),
        IpAddr::V6(ip) => take(&ip.octets()),
    }
}

/// What a register contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loaded {
    Meta(u32),
    /// Base, offset and length.
    Payload(u32, u32, usize),
}

/// The register that the native expressions of one rule work with.
#[derive(Debug)]
pub(super) struct Register<'a> {
    family: IpFamily,
    register: u32,
    loaded: Option<Loaded>,
    mask: Option<&'a [u8]>,
    /// Whether what was loaded is still to be compared.
    pending: bool,
}

impl<'a> Register<'a> {
    pub fn new(family: IpFamily) -> Self {
        Self { family, register: 0, loaded: None, mask: None, pending: false }
    }

    /// Whether the register was loaded and not compared.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// Decodes `meta`, `payload`, `bitwise` or `cmp`; `None` for what iptables has no words for.
    pub fn decode(&mut self, name: &str, data: Attributes<'a>, rule: &mut Rule) -> Option<()> {
        match name {
            "meta" => self.load(data.be32(1)?, Loaded::Meta(data.be32(2)?))?,
            "payload" => {
                let length = usize::try_from(data.be32(4)?).ok()?;
                self.load(data.be32(1)?, Loaded::Payload(data.be32(2)?, data.be32(3)?, length))?;
            }
            "bitwise" => {
                let in_place =
                    self.loaded.is_some() && data.be32(1)? == self.register && data.be32(2)? == self.register;
                // NFT_BITWISE_MASK_XOR is 0, the only operation of older kernels.
                let masks = data.be32(6).unwrap_or(0) == 0 && value(data, 5)?.iter().all(|byte| *byte == 0);
                (in_place && masks && self.mask.is_none()).then_some(())?;
                self.mask = Some(value(data, 4)?);
            }
            "cmp" => {
                (data.be32(1)? == self.register).then_some(())?;
                let not = match data.be32(2)? {
                    NFT_CMP_EQ => false,
                    NFT_CMP_NEQ => true,
                    _ => return None,
                };
                self.compare(self.loaded?, not, value(data, 3)?, rule)?;
                self.pending = false;
            }
            _ => return None,
        }
        Some(())
    }

    fn load(&mut self, register: u32, loaded: Loaded) -> Option<()> {
        let was_pending = self.pending;
        *self = Self { register, loaded: Some(loaded), mask: None, family: self.family, pending: true };
        (!was_pending).then_some(())
    }

    fn compare(&self, loaded: Loaded, not: bool, bytes: &[u8], rule: &mut Rule) -> Option<()> {
        let (source, destination, protocol, _) = offsets(self.family);
        match loaded {
            Loaded::Meta(NFT_META_MARK) => {
                let (value, mask) = (bytes.try_into().ok()?, self.mask?.try_into().ok()?);
                let (value, mask) = (u32::from_ne_bytes(value), u32::from_ne_bytes(mask));
                (value == mask).then(|| rule.matches.push(Match::Mark(Negatable { not, value })))
            }
            _ if matches!(loaded, Loaded::Meta(_)) && self.mask.is_some() => None,
            Loaded::Meta(NFT_META_IIFNAME) => set(&mut rule.in_interface, Negatable { not, value: interface(bytes)? }),
            Loaded::Meta(NFT_META_L4PROTO) => protocol_of(rule, not, bytes),
            Loaded::Payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length) if offset == source => {
                set(&mut rule.source, Negatable { not, value: self.net(bytes, length)? })
            }
            Loaded::Payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length) if offset == destination => {
                set(&mut rule.destination, Negatable { not, value: self.net(bytes, length)? })
            }
            _ if self.mask.is_some() => None,
            Loaded::Payload(NFT_PAYLOAD_NETWORK_HEADER, offset, 1) if offset == protocol => {
                protocol_of(rule, not, bytes)
            }
            Loaded::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2) if !not => {
                let port = u16::from_be_bytes(bytes.try_into().ok()?);
                rule.matches.push(Match::DestinationPort(rule.protocol?, port));
                Some(())
            }
            _ => None,
        }
    }

    /// The network that an address is compared with. iptables 1.8.6 and later load whole bytes of a prefix only.
    fn net(&self, bytes: &[u8], length: usize) -> Option<IpNet> {
        let (.., whole) = offsets(self.family);
        (bytes.len() == length && length <= whole && length > 0).then_some(())?;
        let mut padded = [0; 16];
        padded[..length].copy_from_slice(bytes);
        let prefix = match self.mask {
            None => length.checked_mul(8)?,
            Some(mask) => prefix_length(mask).filter(|_| mask.len() == length)?,
        };
        let net = IpNet::new(address(self.family, padded), u8::try_from(prefix).ok()?).ok()?;
        Some(net).filter(|net| net.trunc() == *net)
    }
}

/// Sets a part of a rule, which may be there once.
fn set<T>(part: &mut Option<T>, value: T) -> Option<()> {
    part.is_none().then(|| *part = Some(value))
}

fn protocol_of(rule: &mut Rule, not: bool, bytes: &[u8]) -> Option<()> {
    let (name, _) = PROTOCOLS.iter().find(|(_, number)| [*number] == bytes).filter(|_| !not)?;
    set(&mut rule.protocol, name)
}

/// A name ends with NUL; without, it is a prefix.
fn interface(bytes: &[u8]) -> Option<String> {
    let name = bytes.strip_suffix(&[0]);
    let (name, wildcard) = name.map_or((bytes, "+"), |name| (name.trim_ascii_end_nul(), ""));
    let name = std::str::from_utf8(name).ok()?;
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    (plain && !name.ends_with('+') && name.len() <= INTERFACE_MAX).then(|| format!("{name}{wildcard}"))
}

trait TrimNul {
    fn trim_ascii_end_nul(&self) -> &[u8];
}

impl TrimNul for [u8] {
    /// nft compares all sixteen bytes of a name.
    fn trim_ascii_end_nul(&self) -> &[u8] {
        let end = self.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        &self[..end]
    }
}

/// The length of a contiguous mask.
fn prefix_length(mask: &[u8]) -> Option<usize> {
    let ones: usize = mask.iter().map(|byte| byte.leading_ones() as usize).take_while(|ones| *ones > 0).sum();
    let set: usize = mask.iter().map(|byte| byte.count_ones() as usize).sum();
    let contiguous = mask.iter().position(|byte| *byte != 0xff).is_none_or(|at| mask[at + 1..].iter().all(|b| *b == 0));
    (ones == set && contiguous).then_some(ones)
}

fn value<'a>(data: Attributes<'a>, kind: u16) -> Option<&'a [u8]> {
    data.nest(kind)?.find(NFTA_DATA_VALUE)
}
