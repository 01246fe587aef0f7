//! Writes the expressions of iptables-nft's rules.

use super::structure::Extension;
use crate::kernel::netlink::Request;
use crate::kernel::nftables::uapi::*;

fn expression(list: &mut Request, name: &str, fill: impl FnOnce(&mut Request)) {
    list.nested(NFTA_LIST_ELEM, |item| {
        item.text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, fill);
    });
}

fn numbers(data: &mut Request, numbers: &[(u16, u32)]) {
    for (kind, number) in numbers {
        data.attribute(*kind, &number.to_be_bytes());
    }
}

fn value(data: &mut Request, kind: u16, bytes: &[u8]) {
    data.nested(kind, |nest| _ = nest.attribute(NFTA_DATA_VALUE, bytes));
}

/// Loads a property of the packet into register 1.
pub(super) fn meta(list: &mut Request, key: u32) {
    expression(list, "meta", |data| numbers(data, &[(2, key), (1, NFT_REG_1)]));
}

/// Loads bytes of the network header into register 1.
pub(super) fn payload(list: &mut Request, offset: u32, length: u32) {
    let fields = [(1, NFT_REG_1), (2, NFT_PAYLOAD_NETWORK_HEADER), (3, offset), (4, length)];
    expression(list, "payload", |data| numbers(data, &fields));
}

/// Masks register 1.
pub(super) fn bitwise(list: &mut Request, mask: &[u8]) {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    expression(list, "bitwise", |data| {
        numbers(data, &[(1, NFT_REG_1), (2, NFT_REG_1), (3, length)]);
        value(data, 4, mask);
        value(data, 5, &[0; 16][..mask.len().min(16)]);
    });
}

/// Compares register 1.
pub(super) fn compare(list: &mut Request, not: bool, with: &[u8]) {
    expression(list, "cmp", |data| {
        numbers(data, &[(1, NFT_REG_1), (2, if not { NFT_CMP_NEQ } else { NFT_CMP_EQ })]);
        value(data, 3, with);
    });
}

/// Counts, from zero.
pub(super) fn counter(list: &mut Request) {
    expression(list, "counter", |data| {
        data.attribute(NFTA_COUNTER_BYTES, &[0; 8]).attribute(NFTA_COUNTER_PACKETS, &[0; 8]);
    });
}

/// A verdict, with the chain of a jump.
pub(super) fn verdict(list: &mut Request, code: i32, chain: Option<&str>) {
    expression(list, "immediate", |data| {
        numbers(data, &[(1, NFT_REG_VERDICT)]);
        data.nested(2, |nest| {
            nest.nested(NFTA_DATA_VERDICT, |verdict| {
                verdict.attribute(NFTA_VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.text(NFTA_VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

/// A `match` or `target`.
pub(super) fn extension(list: &mut Request, kind: &str, extension: &Extension) {
    expression(list, kind, |data| {
        data.text(EXTENSION[0], extension.name).attribute(EXTENSION[1], &extension.revision.to_be_bytes());
        data.attribute(EXTENSION[2], extension.bytes());
    });
}
