//! The packet fields that rules match, with their nft syntax and kernel encoding.
//!
//! One table defines both, so that the text and the expressions of a rule cannot disagree.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::IpFamily;

/// The header that a payload offset is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadBase {
    /// The link-layer header.
    Link,
    /// The network header.
    Network,
    /// The transport header.
    Transport,
}

/// The source of a loaded value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Load {
    /// Bytes of the packet, at an offset in bytes.
    Payload(PayloadBase, u32),
    /// `NFT_META_MARK`
    Mark,
    /// `NFT_META_IIFNAME`
    InputName,
    /// `NFT_META_OIFNAME`
    OutputName,
    /// `NFT_META_IIF`
    InputIndex,
    /// `NFT_META_OIF`
    OutputIndex,
    /// `NFT_META_NFPROTO`
    Family,
    /// `NFT_META_L4PROTO`
    Protocol,
    /// Another `NFT_META_*`.
    Meta(u32),
    /// `NFT_CT_STATE`
    CtState,
    /// `NFT_CT_DIRECTION`
    CtDirection,
    /// `NFT_CT_STATUS`
    CtStatus,
    /// `NFT_CT_MARK`
    CtMark,
    /// Another `NFT_CT_*`, of one direction (`IP_CT_DIR_*`) or without direction.
    Ct(u32, Option<u8>),
    /// The route type of the source address (`RTN_LOCAL`, …).
    SourceType,
    /// The route type of the destination address.
    DestinationType,
    /// Another FIB lookup.
    Fib {
        /// `NFT_FIB_RESULT_*`
        result: u32,
        /// `NFTA_FIB_F_*`
        flags: u32,
    },
    /// A random number: `offset` to `offset + modulus - 1`.
    Random {
        /// The number of values.
        modulus: u32,
        /// The smallest value.
        offset: u32,
    },
    /// The same numbers in sequence.
    Incremental {
        /// The number of values.
        modulus: u32,
        /// The smallest value.
        offset: u32,
    },
}

/// A packet field, or a number in a concatenated key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `ip saddr`
    Source(IpFamily),
    /// `ip daddr`
    Destination(IpFamily),
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    Port,
    /// `th sport`
    SourcePort,
    /// `meta mark`
    Mark,
    /// `iifname`
    Input,
    /// `fib saddr type`
    SourceType,
    /// `fib daddr type`
    DestinationType,
    /// `numgen random mod N`, with `offset N`
    Random {
        /// The number of values.
        modulus: u32,
        /// The smallest value.
        offset: u32,
    },
    /// `jhash FIELDS mod N seed S`: a number from 0 to `modulus` - 1 that depends on the client only.
    Hash {
        /// The hashed fields.
        of: HashedClient,
        /// The number of values.
        modulus: u32,
        /// The seed. With the same seed, all nodes compute the same numbers.
        seed: u32,
    },
}

/// The fields of a packet that identify its client, for [`Field::Hash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashedClient {
    /// `ip saddr`
    Address(IpFamily),
    /// `ip saddr . th sport`
    AddressAndPort(IpFamily),
}

impl HashedClient {
    /// The fields in order.
    #[must_use]
    pub fn fields(self) -> Vec<Field> {
        match self {
            Self::Address(family) => vec![Field::Source(family)],
            Self::AddressAndPort(family) => vec![Field::Source(family), Field::SourcePort],
        }
    }

    /// The hashed bytes of a client: each field in network byte order, padded with zeros to 4 bytes.
    #[must_use]
    pub fn bytes(self, client: SocketAddr) -> Vec<u8> {
        let mut bytes = match client.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        if matches!(self, Self::AddressAndPort(_)) {
            bytes.extend(client.port().to_be_bytes());
            bytes.extend([0; 2]);
        }
        bytes
    }
}

impl Field {
    /// A random number from 0 to `modulus` - 1.
    #[must_use]
    pub fn random(modulus: u32) -> Self {
        Self::Random { modulus, offset: 0 }
    }

    /// A constant. nft has no syntax for a constant in a concatenation, so it is a random number from a range of one.
    #[must_use]
    pub fn constant(number: u32) -> Self {
        Self::Random { modulus: 1, offset: number }
    }

    /// The source that the kernel loads it from; `None` for a hash, which is computed.
    #[must_use]
    pub fn load(self) -> Option<Load> {
        Some(match self {
            Self::Source(IpFamily::V4) => Load::Payload(PayloadBase::Network, 12),
            Self::Source(IpFamily::V6) => Load::Payload(PayloadBase::Network, 8),
            Self::Destination(IpFamily::V4) => Load::Payload(PayloadBase::Network, 16),
            Self::Destination(IpFamily::V6) => Load::Payload(PayloadBase::Network, 24),
            Self::Protocol => Load::Protocol,
            Self::Port => Load::Payload(PayloadBase::Transport, 2),
            Self::SourcePort => Load::Payload(PayloadBase::Transport, 0),
            Self::Mark => Load::Mark,
            Self::Input => Load::InputName,
            Self::SourceType => Load::SourceType,
            Self::DestinationType => Load::DestinationType,
            Self::Random { modulus, offset } => Load::Random { modulus, offset },
            Self::Hash { .. } => return None,
        })
    }

    /// The length in bytes, without padding.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::Source(IpFamily::V4) | Self::Destination(IpFamily::V4) => 4,
            Self::Source(IpFamily::V6) | Self::Destination(IpFamily::V6) | Self::Input => 16,
            Self::Protocol => 1,
            Self::Port | Self::SourcePort => 2,
            Self::Mark | Self::SourceType | Self::DestinationType | Self::Random { .. } | Self::Hash { .. } => 4,
        }
    }

    /// The length in a concatenation, padded to 4 bytes.
    #[must_use]
    pub fn padded(self) -> usize {
        self.width().next_multiple_of(4)
    }

    /// nft's type number, which nft uses to print elements and the kernel only stores.
    #[must_use]
    pub fn type_number(self) -> u32 {
        match self {
            Self::Source(IpFamily::V4) | Self::Destination(IpFamily::V4) => 7,
            Self::Source(IpFamily::V6) | Self::Destination(IpFamily::V6) => 8,
            Self::Protocol => 12,
            Self::Port | Self::SourcePort => 13,
            Self::Mark => 19,
            Self::SourceType | Self::DestinationType => 35,
            Self::Input => 41,
            Self::Random { .. } | Self::Hash { .. } => 4,
        }
    }

    /// The type's name; `None` for fields that nft declares with `typeof`.
    #[must_use]
    pub fn type_name(self) -> Option<&'static str> {
        match self {
            Self::Source(IpFamily::V4) | Self::Destination(IpFamily::V4) => Some("ipv4_addr"),
            Self::Source(IpFamily::V6) | Self::Destination(IpFamily::V6) => Some("ipv6_addr"),
            Self::Protocol => Some("inet_proto"),
            Self::Port | Self::SourcePort => Some("inet_service"),
            Self::Mark => Some("mark"),
            Self::SourceType | Self::DestinationType => Some("fib_addrtype"),
            Self::Input => Some("ifname"),
            Self::Random { .. } | Self::Hash { .. } => None,
        }
    }

    /// nft's description of the field for `typeof` in a listing.
    ///
    /// The number of the expression kind, and the numbers of its attributes (`NFTNL_UDATA_SET_KEY_TYPEOF`). The kernel
    /// only stores it.
    #[must_use]
    pub fn description(self) -> (u32, Vec<u32>) {
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const NUMGEN: u32 = 23;
        match self {
            Self::Source(IpFamily::V4) => (PAYLOAD, vec![12, 11]),
            Self::Destination(IpFamily::V4) => (PAYLOAD, vec![12, 12]),
            Self::Source(IpFamily::V6) => (PAYLOAD, vec![13, 8]),
            Self::Destination(IpFamily::V6) => (PAYLOAD, vec![13, 9]),
            Self::Port => (PAYLOAD, vec![11, 2]),
            Self::SourcePort => (PAYLOAD, vec![11, 1]),
            Self::Protocol => (META, vec![16]),
            Self::Mark => (META, vec![3]),
            Self::Input => (META, vec![6]),
            Self::SourceType | Self::DestinationType => (24, Vec::new()),
            Self::Hash { .. } => (25, Vec::new()),
            Self::Random { modulus, offset } => (NUMGEN, vec![1, modulus, offset]),
        }
    }

    /// Writes a value of this type in nft syntax.
    pub(super) fn write_value(self, f: &mut fmt::Formatter<'_>, value: &[u8]) -> fmt::Result {
        let number = || <[u8; 4]>::try_from(value).map_or(0, u32::from_ne_bytes);
        match self {
            Self::Source(_) | Self::Destination(_) => match *value {
                [a, b, c, d] => write!(f, "{}", Ipv4Addr::new(a, b, c, d)),
                _ => match <[u8; 16]>::try_from(value) {
                    Ok(octets) => write!(f, "{}", Ipv6Addr::from(octets)),
                    Err(_) => f.write_str("?"),
                },
            },
            Self::Protocol => match value {
                [6, ..] => f.write_str("tcp"),
                [17, ..] => f.write_str("udp"),
                [132, ..] => f.write_str("sctp"),
                [other, ..] => write!(f, "{other}"),
                [] => f.write_str("?"),
            },
            Self::Port | Self::SourcePort => match value {
                [high, low, ..] => write!(f, "{}", u16::from_be_bytes([*high, *low])),
                _ => f.write_str("?"),
            },
            Self::Mark => write!(f, "{:#010x}", number()),
            Self::Random { .. } | Self::Hash { .. } | Self::SourceType | Self::DestinationType => {
                write!(f, "{}", number())
            }
            Self::Input => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                write!(f, "\"{}\"", String::from_utf8_lossy(name))
            }
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(family) => write!(f, "{} saddr", family.nft()),
            Self::Destination(family) => write!(f, "{} daddr", family.nft()),
            Self::Protocol => f.write_str("meta l4proto"),
            Self::Port => f.write_str("th dport"),
            Self::SourcePort => f.write_str("th sport"),
            Self::Mark => f.write_str("meta mark"),
            Self::Input => f.write_str("iifname"),
            Self::SourceType => f.write_str("fib saddr type"),
            Self::DestinationType => f.write_str("fib daddr type"),
            Self::Random { modulus, offset: 0 } => write!(f, "numgen random mod {modulus}"),
            Self::Random { modulus, offset } => write!(f, "numgen random mod {modulus} offset {offset}"),
            Self::Hash { of, modulus, seed } => {
                write!(f, "jhash {} mod {modulus} seed {seed:#x}", Fields(&of.fields()))
            }
        }
    }
}

/// A concatenation in nft syntax, with dots between the fields.
pub(super) struct Fields<'a>(pub &'a [Field]);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, field) in self.0.iter().enumerate() {
            write!(f, "{}{field}", if at > 0 { " . " } else { "" })?;
        }
        Ok(())
    }
}
