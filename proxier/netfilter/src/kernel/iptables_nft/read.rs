//! Reads the rules of iptables-nft tables from the kernel.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::rule::{DecodedRule, decode};
use super::sets::SetIndex;
use crate::kernel::netlink::{
    Attributes, Dump, NFGENMSG_LENGTH, Netlink, NetlinkError, Received, Request, nfgenmsg, nfnetlink,
};
use crate::kernel::nftables::NftError;
use crate::kernel::nftables::uapi::*;
use crate::{Counters, IpFamily};

/// The number of attempts if nf_tables changes during a dump.
pub(in crate::kernel) const TRIES: u32 = 5;

/// A rule as read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRule {
    /// The handle, which identifies the rule in its chain.
    pub handle: u64,
    /// What it matches and does.
    pub rule: DecodedRule,
    /// Its counters; `None` if it does not count.
    pub counters: Option<Counters>,
}

/// A reader of iptables rules in nf_tables.
///
/// Works in the network namespace of the thread that reads first. Nothing is changed or created.
#[derive(Debug)]
pub struct NftRules {
    family: IpFamily,
    socket: Option<Netlink>,
    pub(super) sets: SetIndex,
}

impl NftRules {
    /// A reader of one family.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, socket: None, sets: SetIndex::default() }
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// Reads the rules of one chain, in order, at a cost that does not depend on other chains.
    ///
    /// A chain or table that does not exist has no rules.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn chain(&mut self, table: &str, chain: &str) -> Result<Vec<ReadRule>, NftError> {
        complete(self.chain_or_part(table, chain)?)
    }

    /// Reads the rules of all chains of a table and passes each to `each`, with its chain, in order.
    ///
    /// If nf_tables changes in between, the result is discarded and all rules are passed again, to a new one.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn table<T: Default>(&mut self, table: &str, each: impl FnMut(&mut T, &str, ReadRule)) -> Result<T, NftError> {
        complete(self.read(table, None, read_rule, each)?)
    }

    /// As [`NftRules::chain`]; if nf_tables changes during each attempt, rules may be missing or passed twice.
    pub(super) fn chain_or_part(&mut self, table: &str, chain: &str) -> Result<(Vec<ReadRule>, Dump), NftError> {
        self.read(table, Some(chain), read_rule, |rules: &mut Vec<_>, _, rule| rules.push(rule))
    }

    /// Reads rules of one chain, or of all of a table, by `decode`.
    ///
    /// If nf_tables changes during each attempt, the result is that of the last one, and may be incomplete.
    pub(super) fn read<T: Default, R>(
        &mut self,
        table: &str,
        chain: Option<&str>,
        decode: impl Fn(IpFamily, Attributes<'_>, &mut SetIndex) -> Option<R>,
        mut each: impl FnMut(&mut T, &str, R),
    ) -> Result<(T, Dump), NftError> {
        let mut collected = T::default();
        for _ in 0..TRIES {
            collected = T::default();
            self.sets.forget();
            let (family, sets) = (self.family, &mut self.sets);
            let end = dump_rules(&mut self.socket, family, table, chain, &mut |of, message| {
                if let Some(rule) = decode(family, message, sets) {
                    each(&mut collected, of, rule);
                }
            })?;
            if end == Dump::Complete {
                return Ok((collected, end));
            }
        }
        Ok((collected, Dump::Interrupted))
    }
}

/// Dumps the rules of one chain, or of all of a table, once: passes the name of the chain and the attributes of each.
///
/// A table or chain that does not exist has no rules. `Interrupted`: nf_tables changed meanwhile, or answers were lost.
/// `socket` is opened if there is none, and closed after a failure: what it has not delivered would be taken for the next
/// answer.
///
/// # Errors
/// If the kernel refuses.
pub(in crate::kernel) fn dump_rules(
    socket: &mut Option<Netlink>,
    family: IpFamily,
    table: &str,
    chain: Option<&str>,
    each: &mut dyn FnMut(&str, Attributes<'_>),
) -> Result<Dump, NetlinkError> {
    let mut request = Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE), 0, &nfgenmsg(family.nfproto()));
    request.text(NFTA_RULE_TABLE, table);
    if let Some(chain) = chain {
        request.text(NFTA_RULE_CHAIN, chain);
    }
    let opened = match socket.take() {
        Some(opened) => socket.insert(opened),
        None => socket.insert(Netlink::open(NETLINK_NETFILTER)?),
    };
    let mut filtered = |received: &Received<'_>| {
        let message = received.attributes(NFGENMSG_LENGTH);
        // Older kernels ignore the filters.
        let (in_table, of) = (message.text(NFTA_RULE_TABLE), message.text(NFTA_RULE_CHAIN));
        if let Some(of) = of.filter(|of| in_table == Some(table) && chain.is_none_or(|chain| chain == *of)) {
            each(of, message);
        }
        Ok(())
    };
    // A whole table may be too large for memory.
    let end = match chain {
        Some(_) => opened.dump_collected(&request, &mut filtered),
        None => opened.dump_once(&request, &mut filtered),
    };
    if end.is_err() {
        *socket = None;
    }
    ended(end)
}

/// What the end of a dump means: after lost answers it was interrupted, and of a table or nf_tables that does not exist
/// there is nothing.
pub(super) fn ended(end: Result<Dump, NetlinkError>) -> Result<Dump, NetlinkError> {
    end.or_else(|error| match error.errno() {
        Some(libc::ENOBUFS | libc::EINTR) => Ok(Dump::Interrupted),
        // No such table, or no nf_tables.
        Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP) => Ok(Dump::Complete),
        _ => Err(error),
    })
}

/// The result of a read that no change interrupted.
fn complete<T>((read, end): (T, Dump)) -> Result<T, NftError> {
    if end == Dump::Complete { Ok(read) } else { Err(NftError::Interrupted) }
}

fn read_rule(family: IpFamily, message: Attributes<'_>, sets: &mut SetIndex) -> Option<ReadRule> {
    let handle = message.be64(NFTA_RULE_HANDLE)?;
    let (rule, counters) = decode(family, message, sets);
    Some(ReadRule { handle, rule, counters })
}
