//! Encodes and decodes the source of expressions that load a value.

use super::expression::Numbers;
use super::uapi::*;
use crate::kernel::netlink::Request;
use crate::nft::{Load, PayloadBase, Register};

/// The keys of `meta` and `ct` that have a [`Load`] variant.
const META: [(Load, u32); 7] = [
    (Load::Mark, NFT_META_MARK),
    (Load::InputName, NFT_META_IIFNAME),
    (Load::OutputName, NFT_META_OIFNAME),
    (Load::InputIndex, NFT_META_IIF),
    (Load::OutputIndex, NFT_META_OIF),
    (Load::Family, NFT_META_NFPROTO),
    (Load::Protocol, NFT_META_L4PROTO),
];
const CONNECTION: [(Load, u32); 4] = [
    (Load::CtState, NFT_CT_STATE),
    (Load::CtDirection, NFT_CT_DIRECTION),
    (Load::CtStatus, NFT_CT_STATUS),
    (Load::CtMark, NFT_CT_MARK),
];

/// The name of the expression.
pub(super) fn name(load: Load) -> &'static str {
    match load {
        Load::Payload(..) => "payload",
        Load::CtState | Load::CtDirection | Load::CtStatus | Load::CtMark | Load::Ct(..) => "ct",
        Load::SourceType | Load::DestinationType | Load::Fib { .. } => "fib",
        Load::Random { .. } | Load::Incremental { .. } => "numgen",
        _ => "meta",
    }
}

/// The loaded bytes, for expressions without an explicit length.
pub(super) fn width(load: Load) -> u32 {
    match load {
        Load::InputName | Load::OutputName => 16,
        Load::Family | Load::Protocol | Load::CtDirection | Load::Meta(NFT_META_PKTTYPE) => 1,
        Load::Meta(NFT_META_PROTOCOL | NFT_META_IIFTYPE | NFT_META_OIFTYPE) => 2,
        _ => 4,
    }
}

pub(super) fn write(data: &mut Request, from: Load, width: u32, to: Register) {
    data.register(1, to);
    let known = |list: &[(Load, u32)]| list.iter().find(|(load, _)| *load == from).map_or(0, |(_, number)| *number);
    match from {
        Load::Payload(origin, offset) => {
            let base = match origin {
                PayloadBase::Link => 0,
                PayloadBase::Network => 1,
                PayloadBase::Transport => 2,
            };
            data.u32(2, base).u32(3, offset).u32(4, width);
        }
        Load::Mark
        | Load::InputName
        | Load::OutputName
        | Load::InputIndex
        | Load::OutputIndex
        | Load::Family
        | Load::Protocol => _ = data.u32(2, known(&META)),
        Load::CtState | Load::CtDirection | Load::CtStatus | Load::CtMark => _ = data.u32(2, known(&CONNECTION)),
        Load::Meta(key) => _ = data.u32(2, key),
        Load::Ct(key, direction) => {
            data.u32(2, key);
            if let Some(direction) = direction {
                data.attribute(3, &[direction]);
            }
        }
        Load::SourceType => _ = data.u32(2, NFT_FIB_RESULT_ADDRTYPE).u32(3, NFTA_FIB_F_SADDR),
        Load::DestinationType => _ = data.u32(2, NFT_FIB_RESULT_ADDRTYPE).u32(3, NFTA_FIB_F_DADDR),
        Load::Fib { result, flags } => _ = data.u32(2, result).u32(3, flags),
        Load::Random { modulus, offset } => _ = data.u32(2, modulus).u32(3, NFT_NG_RANDOM).u32(4, offset),
        Load::Incremental { modulus, offset } => _ = data.u32(2, modulus).u32(3, NFT_NG_INCREMENTAL).u32(4, offset),
    }
}

/// Decodes the source of an expression. `direction` is the third attribute if it has one byte.
pub(super) fn read(name: &str, u32: impl Fn(u16) -> Option<u32>, direction: Option<u8>) -> Option<Load> {
    let named = |list: &[(Load, u32)], key| list.iter().find(|(_, number)| *number == key).map(|(load, _)| *load);
    Some(match (name, u32(2)?) {
        ("payload", 0) => Load::Payload(PayloadBase::Link, u32(3)?),
        ("payload", 1) => Load::Payload(PayloadBase::Network, u32(3)?),
        ("payload", 2) => Load::Payload(PayloadBase::Transport, u32(3)?),
        ("meta", key) => named(&META, key).unwrap_or(Load::Meta(key)),
        ("ct", key) if direction.is_none() => named(&CONNECTION, key).unwrap_or(Load::Ct(key, None)),
        ("ct", key) => Load::Ct(key, direction),
        ("fib", result) => match (result, u32(3)?) {
            (NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR) => Load::SourceType,
            (NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR) => Load::DestinationType,
            (result, flags) => Load::Fib { result, flags },
        },
        ("numgen", modulus) => match u32(3)? {
            NFT_NG_RANDOM => Load::Random { modulus, offset: u32(4).unwrap_or(0) },
            NFT_NG_INCREMENTAL => Load::Incremental { modulus, offset: u32(4).unwrap_or(0) },
            _ => return None,
        },
        _ => return None,
    })
}
