//! Reads the tables of any program, whole or in parts. Nothing is changed.

use std::collections::BTreeMap;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::encode::*;
use super::uapi::*;
use super::{NftError, decode, decode_ruleset, presence};
use crate::IpFamily;
use crate::kernel::netlink::{
    Attributes, Dump, NFGENMSG_LENGTH, Netlink, NetlinkError, Received, Request, nfgenmsg, nfnetlink,
};
use crate::nft::Name;
use crate::nft::ruleset::{Element, Elements, Rule, Ruleset, Scope, Set, Table, TableId, UnreadPart};

/// The number of attempts if the ruleset changes during a dump.
const TRIES: u32 = 5;

/// Families with hooks besides those of IP: `NFPROTO_NETDEV` is 5.
const OTHER_FAMILIES: [(u8, &str); 4] =
    [(NFPROTO_INET, "inet"), (NFPROTO_ARP, "arp"), (5, "netdev"), (NFPROTO_BRIDGE, "bridge")];

/// A base chain at another place than the five hooks of IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherChain {
    /// Family, table and name.
    pub chain: String,
    /// Whether packets in bridges meet it.
    pub of_bridges: bool,
    /// Whether ARP meets it, by which the neighbours of IPv4 are found.
    pub of_arp: bool,
    /// The interfaces whose packets meet it, if those are named; a name with `*` at its end is a prefix.
    pub devices: Vec<String>,
}

/// A reader of the nf_tables ruleset of one family.
#[derive(Debug)]
pub struct NftReader {
    pub(super) family: IpFamily,
    socket: Option<Netlink>,
    interrupted: bool,
}

impl NftReader {
    /// A reader for the network namespace of the thread that reads first.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, socket: None, interrupted: false }
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// Whether a dump since the last call was interrupted in every attempt.
    ///
    /// Its result may be incomplete or mix two states.
    pub fn take_interrupted(&mut self) -> bool {
        std::mem::take(&mut self.interrupted)
    }

    /// Reads the whole ruleset.
    ///
    /// Returns a message for each part that could not be read.
    ///
    /// # Errors
    /// If the tables cannot be listed.
    pub fn read_all(&mut self) -> Result<(Ruleset, Vec<String>), NftError> {
        let mut ruleset = self.read_outline()?;
        let mut problems = Vec::new();
        let mut note = |what: String, error: NftError| problems.push(format!("{what}: {error}"));
        for (id, table) in &mut ruleset.tables {
            self.read_contents(id, table, &mut note);
            self.read_elements(id, table, &|_, _| true, &mut note);
        }
        if self.take_interrupted() {
            problems.push(NftError::Interrupted.to_string());
        }
        Ok((ruleset, problems))
    }

    /// Reads the rules and sets of a table, without elements. Failures are passed to `note`.
    pub fn read_contents(&mut self, id: &TableId, table: &mut Table, note: &mut dyn FnMut(String, NftError)) {
        match self.all_rules(id) {
            Ok(mut rules) => {
                for (name, chain) in &mut table.chains {
                    chain.rules = Some(rules.remove(name).unwrap_or_default());
                }
            }
            Err(error) => note(format!("rules of table {id}"), error),
        }
        match self.sets(id) {
            Ok(sets) => table.sets = sets,
            Err(error) => note(format!("sets of table {id}"), error),
        }
    }

    /// Reads the elements of the sets that `wanted` selects. Failures are passed to `note`.
    pub fn read_elements(
        &mut self,
        id: &TableId,
        table: &mut Table,
        wanted: &dyn Fn(&Name, &Set) -> bool,
        note: &mut dyn FnMut(String, NftError),
    ) {
        for (name, set) in table.sets.iter_mut().filter(|(name, set)| wanted(name, set)) {
            match self.elements(id, name, set) {
                Ok(elements) => set.elements = elements,
                Err(error) => note(format!("set {name} of table {id}"), error),
            }
        }
    }

    /// Reads the rules of one chain.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn rules(&mut self, table: &TableId, chain: &str) -> Result<Vec<Rule>, NftError> {
        let mut request = request(table, NFT_MSG_GETRULE);
        request.text(NFTA_RULE_CHAIN, chain);
        let mut rules = self.rules_of(table, &request)?;
        Ok(rules.remove(chain).unwrap_or_default())
    }

    /// Reads the rules of all chains of a table.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn all_rules(&mut self, table: &TableId) -> Result<BTreeMap<Name, Vec<Rule>>, NftError> {
        self.rules_of(table, &request(table, NFT_MSG_GETRULE))
    }

    fn rules_of(&mut self, table: &TableId, request: &Request) -> Result<BTreeMap<Name, Vec<Rule>>, NftError> {
        self.collect(request, |known: &mut BTreeMap<Name, Vec<Rule>>, attributes| {
            if let Some((chain, rule)) =
                decode_ruleset::rule(attributes).filter(|_| decode::is_of(attributes, &table.name))
            {
                known.entry(chain).or_default().push(rule);
            }
        })
    }

    /// Reads the sets and maps of a table, without elements.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn sets(&mut self, table: &TableId) -> Result<BTreeMap<Name, Set>, NftError> {
        self.collect(&request(table, NFT_MSG_GETSET), |known: &mut BTreeMap<_, _>, attributes| {
            known.extend(decode_ruleset::set(attributes).filter(|_| decode::is_of(attributes, &table.name)));
        })
    }

    /// Reads one set or map, without elements; `None` if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn set(&mut self, table: &TableId, name: &str) -> Result<Option<Set>, NftError> {
        let mut request = request(table, NFT_MSG_GETSET);
        request.text(NFTA_SET_NAME, name);
        let mut found = None;
        self.query(&request, &mut |attributes| found = found.take().or(decode_ruleset::set(attributes)))?;
        Ok(found.map(|(_, set)| set))
    }

    /// Reads all elements of a set or map.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn elements(&mut self, table: &TableId, name: &str, set: &Set) -> Result<Elements, NftError> {
        let mut request = request(table, NFT_MSG_GETSETELEM);
        request.text(NFTA_SET_ELEM_LIST_SET, name);
        let list: Vec<(Element, bool)> = self.collect(&request, |known: &mut Vec<_>, attributes| {
            known.extend(decode::element_items(attributes).filter_map(decode_ruleset::element));
        })?;
        Ok(match set.is_interval() && set.key.len() == 1 {
            true => Elements::intervals(list),
            false => Elements::complete(list.into_iter().map(|(element, _)| element).collect()),
        })
    }

    /// Looks up a key as the kernel does for a packet.
    ///
    /// Not reliable for sets with intervals of a single field.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn element(&mut self, table: &TableId, name: &str, key: &[u8]) -> Result<Option<Element>, NftError> {
        let named = self.one_element(table, name, |item| {
            item.nested(NFTA_SET_ELEM_KEY, |data| _ = data.attribute(NFTA_DATA_VALUE, key));
        })?;
        if named.is_some() {
            return Ok(named);
        }
        let rest = self.one_element(table, name, |item| {
            item.attribute(NFTA_SET_ELEM_FLAGS, &NFT_SET_ELEM_CATCHALL.to_be_bytes());
        });
        match rest {
            // Kernels before 5.13 do not support catch-all elements.
            Err(NftError::Netlink(error)) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            rest => rest,
        }
    }

    fn one_element(
        &mut self,
        table: &TableId,
        name: &str,
        which: impl FnOnce(&mut Request),
    ) -> Result<Option<Element>, NftError> {
        let mut request = request(table, NFT_MSG_GETSETELEM);
        request.text(NFTA_SET_ELEM_LIST_SET, name);
        request.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| _ = list.nested(NFTA_LIST_ELEM, which));
        let mut found = None;
        self.query(&request, &mut |attributes| {
            found = found.take().or(decode::element_items(attributes).find_map(decode_ruleset::element));
        })?;
        Ok(found.map(|(element, _)| element))
    }

    /// Reads a part that the ruleset lacks.
    ///
    /// Large sets are not read as a whole but looked up by key.
    ///
    /// # Errors
    /// A message that names the part, if it cannot be read.
    pub fn read_part(&mut self, ruleset: &mut Ruleset, lack: &UnreadPart) -> Result<(), String> {
        self.interrupted = false;
        self.insert_part(ruleset, lack)?;
        if self.take_interrupted() { Err(NftError::Interrupted.to_string()) } else { Ok(()) }
    }

    fn insert_part(&mut self, ruleset: &mut Ruleset, lack: &UnreadPart) -> Result<(), String> {
        match lack {
            UnreadPart::Rules(id, name) => {
                let rules = self.rules(id, name).map_err(|error| format!("chain {name} of table {id}: {error}"))?;
                let chain = ruleset.tables.get_mut(id).and_then(|table| table.chains.get_mut(name));
                if let Some(chain) = chain {
                    chain.rules = Some(rules);
                }
            }
            UnreadPart::Set(id, name) => {
                let failed = |error| format!("set {name} of table {id}: {error}");
                let Some(mut set) = self.set(id, name).map_err(failed)? else { return Ok(()) };
                if is_read_whole(&set) {
                    set.elements = self.elements(id, name, &set).map_err(failed)?;
                }
                if let Some(table) = ruleset.tables.get_mut(id) {
                    table.sets.insert(name.clone(), set);
                }
            }
            UnreadPart::Key(id, name, key) => {
                let failed = |error| format!("set {name} of table {id}: {error}");
                let set = ruleset.tables.get_mut(id).and_then(|table| table.sets.get_mut(name));
                let Some(set) = set else { return Ok(()) };
                if is_read_whole(set) {
                    set.elements = self.elements(id, name, set).map_err(failed)?;
                } else {
                    let found = self.element(id, name, key).map_err(failed)?;
                    set.elements.record(key, found);
                }
            }
            UnreadPart::Hooks(hook) => {
                // Without the list the order is not known, which is no failure.
                let listed = self.hook_functions(*hook).ok().flatten();
                let listed = listed.filter(|_| !self.take_interrupted());
                ruleset.hooks.insert(*hook, listed);
            }
        }
        Ok(())
    }

    /// Base chains that packets of both families meet at other places than the five hooks of IP, and that have rules
    /// or drop by their policy.
    ///
    /// # Errors
    /// If they cannot be listed. A kernel without such families has none.
    pub fn other_chains(&mut self) -> Result<Vec<OtherChain>, NftError> {
        let mut found = Vec::new();
        for (family, name) in OTHER_FAMILIES {
            let ask = |message| Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, message), 0, &nfgenmsg(family));
            let listed = self.collect(&ask(NFT_MSG_GETCHAIN), |known: &mut Vec<_>, attributes| {
                known.extend(decode_ruleset::other_chain(attributes, family == NFPROTO_INET));
            });
            let chains: Vec<(Name, Name, bool, Vec<String>)> = match listed {
                Err(NftError::Netlink(error)) if error.raw_os_error().is_some_and(presence::is_absence) => continue,
                listed => listed?,
            };
            for (table, chain, drops, devices) in chains {
                let mut request = ask(NFT_MSG_GETRULE);
                request.text(TABLE, &table).text(NFTA_RULE_CHAIN, &chain);
                let rules: usize = self.collect(&request, |count: &mut usize, _| *count += 1)?;
                if drops || rules > 0 {
                    let chain = format!("{name} {table} {chain}");
                    found.push(OtherChain {
                        chain,
                        of_bridges: family == NFPROTO_BRIDGE,
                        of_arp: family == NFPROTO_ARP,
                        devices,
                    });
                }
            }
        }
        Ok(found)
    }

    /// The socket, which belongs to the network namespace of the thread that opens it.
    fn socket(&mut self) -> Result<&mut Netlink, NftError> {
        match self.socket.take() {
            Some(socket) => Ok(self.socket.insert(socket)),
            None => Ok(self.socket.insert(Netlink::open(NETLINK_NETFILTER)?)),
        }
    }

    /// Sends a request for one object; a missing object is not an error.
    pub(super) fn query(&mut self, request: &Request, each: &mut dyn FnMut(Attributes<'_>)) -> Result<(), NftError> {
        let mut on_message = |received: &Received<'_>| -> Result<(), NetlinkError> {
            each(received.attributes(NFGENMSG_LENGTH));
            Ok(())
        };
        match self.socket()?.query(request, &mut on_message) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            answer => answer.inspect_err(|_| self.socket = None).map_err(Into::into),
        }
    }

    fn dump_once(&mut self, request: &Request, each: &mut dyn FnMut(Attributes<'_>)) -> Result<Dump, NftError> {
        let mut on_message = |received: &Received<'_>| -> Result<(), NetlinkError> {
            each(received.attributes(NFGENMSG_LENGTH));
            Ok(())
        };
        match self.socket()?.dump_once(request, &mut on_message) {
            Ok(end) => Ok(end),
            Err(error) => {
                self.socket = None;
                match error.errno() {
                    Some(libc::ENOBUFS | libc::EINTR) => Ok(Dump::Interrupted),
                    _ => Err(error.into()),
                }
            }
        }
    }

    /// Collects a dump. Of interrupted attempts only the last is kept, and the interruption is recorded.
    pub(super) fn collect<T: Default>(
        &mut self,
        request: &Request,
        each: impl Fn(&mut T, Attributes<'_>),
    ) -> Result<T, NftError> {
        let mut collected = T::default();
        for _ in 0..TRIES {
            collected = T::default();
            if self.dump_once(request, &mut |attributes| each(&mut collected, attributes))? == Dump::Complete {
                return Ok(collected);
            }
        }
        self.interrupted = true;
        Ok(collected)
    }
}

/// Whether the set must be read as a whole: key lookups are unreliable, or the set belongs to one rule.
fn is_read_whole(set: &Set) -> bool {
    set.is_interval() || set.is_anonymous()
}

/// The request for all objects of a family.
pub(super) fn list(scope: Scope, message: u8) -> Request {
    Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, message), 0, &nfgenmsg(scope.nfproto()))
}

/// The request about one table.
pub(super) fn request(table: &TableId, message: u8) -> Request {
    let mut request = list(table.scope, message);
    request.text(TABLE, &table.name);
    request
}
