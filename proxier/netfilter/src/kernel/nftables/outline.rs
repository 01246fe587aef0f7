//! Lists tables and chains, and looks at single chains, without reading rules.

use std::collections::BTreeMap;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::read::{NftReader, list, request};
use super::uapi::*;
use super::{NftError, decode, decode_ruleset, presence};
use crate::Counters;
use crate::kernel::netlink::{Attributes, NFGENMSG_LENGTH, Netlink, NetlinkError, Received};
use crate::nft::Name;
use crate::nft::ruleset::{Chain, Ruleset, Scope, Table, TableId};

impl NftReader {
    /// Reads tables and chains, without rules and sets.
    ///
    /// A kernel without nf_tables has no tables.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn read_outline(&mut self) -> Result<Ruleset, NftError> {
        self.outline(None)
    }

    /// As [`NftReader::read_outline`], without the user-defined chains of a table of iptables.
    ///
    /// Iptables mode makes a chain in table `nat` for each endpoint. They are left out only if all base chains of the
    /// table are built-in chains of iptables: rules of another one may jump to any chain. The kernel lists all chains of a
    /// family; what is saved is to keep them.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn read_outline_without(&mut self, table: &str) -> Result<Ruleset, NftError> {
        let ruleset = self.outline(Some(table))?;
        let id = TableId::of(self.family, table);
        let only_iptables = |table: &Table| {
            let mut base = table.chains.iter().filter(|(_, chain)| chain.base.is_some());
            table.is_iptables(&id) && base.all(|(name, chain)| chain.is_of_iptables(name))
        };
        if ruleset.tables.get(&id).is_none_or(only_iptables) { Ok(ruleset) } else { self.outline(None) }
    }

    fn outline(&mut self, without: Option<&str>) -> Result<Ruleset, NftError> {
        let mut ruleset = Ruleset::new(self.family);
        for scope in [Scope::Family(self.family), Scope::Both] {
            let listed: BTreeMap<Name, Table> =
                match self.collect(&list(scope, NFT_MSG_GETTABLE), |known: &mut BTreeMap<_, _>, attributes| {
                    known.extend(decode_ruleset::table(attributes));
                }) {
                    Err(NftError::Netlink(error)) if error.raw_os_error().is_some_and(presence::is_absence) => continue,
                    listed => listed?,
                };
            let tables = listed.into_iter().map(|(name, table)| (TableId { scope, name }, table));
            ruleset.tables.extend(tables);
            let without = without.filter(|_| scope != Scope::Both);
            let is_skipped = |attributes: Attributes<'_>| {
                without.is_some_and(|table| decode_ruleset::is_user_chain_of(attributes, table))
            };
            let chains: Vec<(Name, Name, _)> =
                self.collect(&list(scope, NFT_MSG_GETCHAIN), |known: &mut Vec<_>, attributes| {
                    if !is_skipped(attributes) {
                        known.extend(decode_ruleset::chain(attributes));
                    }
                })?;
            for (table, name, chain) in chains {
                // A table created after the tables were listed is skipped.
                if let Some(table) = ruleset.tables.get_mut(&TableId { scope, name: table }) {
                    table.chains.insert(name, chain);
                }
            }
        }
        Ok(ruleset)
    }

    /// Reads one chain without its rules, and what the policy of a base chain counted; `None` if it does not exist.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn chain(&mut self, table: &TableId, name: &str) -> Result<Option<(Chain, Counters)>, NftError> {
        let mut request = request(table, NFT_MSG_GETCHAIN);
        request.text(NFTA_CHAIN_NAME, name);
        let mut found = None;
        let answer = self.query(&request, &mut |attributes| {
            let counters = decode_ruleset::policy_counters(attributes);
            found = decode_ruleset::chain(attributes).map(|(_, _, chain)| (chain, counters));
        });
        match answer {
            Err(NftError::Netlink(error)) if error.raw_os_error().is_some_and(presence::is_absence) => Ok(None),
            answer => answer.map(|()| found),
        }
    }

    /// Whether a chain has a rule; `false` if it does not exist.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn has_rules(&mut self, table: &TableId, chain: &str) -> Result<bool, NftError> {
        let mut request = request(table, NFT_MSG_GETRULE);
        request.text(NFTA_RULE_CHAIN, chain);
        let mut found = false;
        // The rest of the dump is not read: a chain may have ten thousand rules. The socket goes with it.
        let end = Netlink::open(NETLINK_NETFILTER)?.dump_once(&request, &mut |received: &Received<'_>| {
            let attributes = received.attributes(NFGENMSG_LENGTH);
            found |= decode::is_of(attributes, &table.name) && attributes.text(NFTA_RULE_CHAIN) == Some(chain);
            if found { Err(NetlinkError::Interrupted) } else { Ok(()) }
        });
        match end {
            _ if found => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.errno().is_some_and(presence::is_absence) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
