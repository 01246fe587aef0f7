//! Decodes the counters of legacy iptables rules: the table as the kernel copies it (`IPT_SO_GET_ENTRIES`).

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::{CountedRule, array, changed, dnat, string};
use crate::iptables::Table;
use crate::kernel::iptables::legacy_tables;
use crate::kernel::legacy::table_size;
use crate::kernel::xtables_lock;
use crate::{Counters, IpFamily};

/// `IPT_SO_GET_ENTRIES`, the same number as `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// The offset of the entries in `struct ipt_get_entries`: name, size, padding.
const ENTRIES: usize = 40;
const NAME: usize = 32;
/// The header of `struct xt_entry_match` and `xt_entry_target`: size, name, revision.
const EXTENSION: usize = 32;
/// How long to wait for programs that change tables.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of attempts if the table changes between the query for its size and the copy.
const TRIES: u32 = 5;

/// Offsets in `struct ipt_entry` or `struct ip6t_entry`.
#[derive(Clone, Copy)]
struct Layout {
    /// The end of what the rule matches without extensions.
    headers: usize,
    protocol: usize,
    target_offset: usize,
    counters: usize,
    matches: usize,
}

impl Layout {
    fn of(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self { headers: 84, protocol: 80, target_offset: 88, counters: 96, matches: 112 },
            IpFamily::V6 => Self { headers: 136, protocol: 128, target_offset: 140, counters: 152, matches: 168 },
        }
    }
}

/// See [`super::counted_rules`].
pub(super) fn read<T: Default>(
    family: IpFamily,
    table: Table,
    mut each: impl FnMut(&mut T, &CountedRule<'_>),
) -> io::Result<T> {
    // A query would create a missing table.
    if !legacy_tables(family)?.lines().any(|name| name == table.name()) {
        return Ok(T::default());
    }
    let bytes = {
        let _lock = xtables_lock::lock(LOCK_TIMEOUT)?;
        copy(family, table)?
    };
    let entries = bytes.get(ENTRIES..).unwrap_or_default();
    let mut collected = T::default();
    decode(family, entries, &mut |rule| each(&mut collected, rule));
    Ok(collected)
}

/// A copy of a table: `struct ipt_get_entries` with its entries. The kernel sums the counters of all CPUs.
fn copy(family: IpFamily, table: Table) -> io::Result<Vec<u8>> {
    let (domain, level) = match family {
        IpFamily::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        IpFamily::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    for _ in 0..TRIES {
        let size = table_size(family, table)?.bytes;
        let mut bytes = vec![0; ENTRIES + usize::try_from(size).map_err(io::Error::other)?];
        bytes[..table.name().len()].copy_from_slice(table.name().as_bytes());
        bytes[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
        // SAFETY: `bytes` is valid for writes of `length` bytes during the call.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::getsockopt(socket.as_raw_fd(), level, GET_ENTRIES, bytes.as_mut_ptr().cast(), &raw mut length)
        };
        match nix::errno::Errno::result(result) {
            Ok(_) => return Ok(bytes),
            // The table has another size by now.
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(changed(table))
}

/// An entry: a rule, or the beginning of a chain.
struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    target: &'a [u8],
}

impl<'a> Entry<'a> {
    fn name(&self) -> &'a str {
        name(self.target)
    }

    /// The chain that begins behind this entry: its target is `ERROR`, with the chain's name.
    fn begins(&self) -> Option<&'a str> {
        (self.name() == "ERROR").then(|| string(self.target.get(EXTENSION..)?)).flatten()
    }
}

/// The name of a match or target.
fn name(extension: &[u8]) -> &str {
    extension.get(2..EXTENSION - 1).and_then(string).unwrap_or_default()
}

/// The entries of a table, up to the first that is malformed.
fn entries(layout: Layout, table: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let u16 = |from| array(table, from).map(|bytes| usize::from(u16::from_ne_bytes(bytes)));
        let (target, next) = (u16(at + layout.target_offset)?, u16(at + layout.target_offset + 2)?);
        let bytes = table.get(at..at + next)?;
        let entry = Entry { at, bytes, target: bytes.get(target..)? };
        at += next.max(layout.matches);
        Some(entry)
    })
}

/// Passes the rules of a table to `each`.
fn decode(family: IpFamily, table: &[u8], each: &mut dyn FnMut(&CountedRule<'_>)) {
    let layout = Layout::of(family);
    // A jump has the offset of the chain's first rule.
    let chains: HashMap<usize, &str> =
        entries(layout, table).filter_map(|entry| Some((entry.at + entry.bytes.len(), entry.begins()?))).collect();
    let mut chain = "";
    for entry in entries(layout, table) {
        if let Some(name) = entry.begins() {
            chain = name;
            continue;
        }
        let counter = |at| array(entry.bytes, layout.counters + at).map_or(0, u64::from_ne_bytes);
        let mut rule = CountedRule {
            chain,
            protocol: entry.bytes.get(layout.protocol).copied().unwrap_or(0),
            comment: comment(layout, &entry),
            counters: Counters { packets: counter(0), bytes: counter(8) },
            ..CountedRule::default()
        };
        let data = entry.target.get(EXTENSION..).unwrap_or_default();
        match entry.name() {
            "" => {
                let verdict = array(data, 0).map_or(-1, i32::from_ne_bytes);
                rule.jump = usize::try_from(verdict).ok().and_then(|at| chains.get(&at).copied());
            }
            "DNAT" => {
                let revision = entry.target.get(EXTENSION - 1).copied().unwrap_or(0);
                rule.dnat = dnat(family, revision.into(), data);
            }
            _ => {}
        }
        let parts = [entry.bytes.get(..layout.headers), entry.bytes.get(layout.matches..)];
        rule.set_fingerprint(parts.into_iter().flatten());
        each(&rule);
    }
}

/// The text of the rule's `comment` match.
fn comment<'a>(layout: Layout, entry: &Entry<'a>) -> Option<&'a str> {
    let end = entry.bytes.len() - entry.target.len();
    let mut rest = entry.bytes.get(layout.matches..end)?;
    while !rest.is_empty() {
        let size = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let (found, after) = rest.split_at_checked(size.max(EXTENSION))?;
        if name(found) == "comment" {
            return string(&found[EXTENSION..]);
        }
        rest = after;
    }
    None
}
