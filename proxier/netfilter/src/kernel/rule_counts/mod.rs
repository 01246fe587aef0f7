//! Reads what iptables rules have counted, of both flavours, without the iptables programs.
//!
//! Only what tells whose connections a rule counted is decoded: [`crate::kernel::NftRules`] and
//! [`crate::kernel::RuleReader`] decode whole rules, at several times the cost. Nothing is changed or created.

mod legacy;
mod nft;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::flavour::Flavour;
use crate::iptables::Table;
use crate::{Counters, IpFamily};

/// What a rule of an iptables table has counted, and what it does with those packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountedRule<'a> {
    /// Its chain; empty for the built-in chains of legacy tables.
    pub chain: &'a str,
    /// The transport protocol that it matches; 0 for any.
    pub protocol: u8,
    /// Its comment.
    pub comment: Option<&'a str>,
    /// The chain that it jumps to.
    pub jump: Option<&'a str>,
    /// The endpoint of a `DNAT` target with one address and port.
    pub dnat: Option<SocketAddr>,
    /// A hash of what it matches and does: tells rules of a chain apart that have the same comment.
    ///
    /// 0 for rules without a comment, and for those that jump or have a `DNAT` target.
    pub fingerprint: u64,
    /// Packets and bytes.
    pub counters: Counters,
}

/// Passes each rule of a table to `each`, in the order of the kernel's list.
///
/// A table that does not exist has no rules. If the rules change while they are read, the result is discarded and all
/// are passed again, to a new one; of a table with thousands of chains only the rules of one chain are passed again.
///
/// # Errors
/// If the kernel refuses, or the rules changed during every attempt.
pub fn counted_rules<T: Default>(
    family: IpFamily,
    flavour: Flavour,
    table: Table,
    each: impl FnMut(&mut T, &CountedRule<'_>),
) -> io::Result<T> {
    match flavour {
        Flavour::Nft => nft::read(family, table, each),
        Flavour::Legacy => legacy::read(family, table, each),
    }
}

impl CountedRule<'_> {
    /// Sets the fingerprint from the parts of the rule, if it has one.
    fn set_fingerprint<'b>(&mut self, parts: impl Iterator<Item = &'b [u8]>) {
        if self.comment.is_some() && self.jump.is_none() && self.dnat.is_none() {
            let mut hasher = DefaultHasher::new();
            parts.for_each(|part| part.hash(&mut hasher));
            self.fingerprint = hasher.finish();
        }
    }
}

fn changed(table: Table) -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, format!("table {} changed while it was read", table.name()))
}

/// The address and port of a `DNAT` target.
///
/// Revision 0, of IPv4 and programs before 1.8.8, has `nf_nat_ipv4_multi_range_compat`, the others `nf_nat_range` with
/// 16 bytes for an address.
fn dnat(family: IpFamily, revision: u32, data: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = if family == IpFamily::V4 && revision == 0 { (8, 16) } else { (4, 36) };
    let port = u16::from_be_bytes(array(data, port)?);
    let ip = match family {
        IpFamily::V4 => IpAddr::from(array::<4>(data, ip)?),
        IpFamily::V6 => IpAddr::from(array::<16>(data, ip)?),
    };
    Some(SocketAddr::new(ip, port))
}

/// The bytes at an offset.
fn array<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A string that a zero byte ends.
fn string(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}
