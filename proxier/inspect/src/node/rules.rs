//! The rules of one family that the kernel holds, of the flavour in use.
//!
//! For one Service, the chains of other Services are not read.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, Host, NftReader, SystemHost, SystemIptables, has_legacy_tables};
use netfilter::nft::ruleset as nft;
use proxier::ipvs::ObservedState;
use proxier::nftables::{TABLE, is_kube_proxy};

use super::flavours::{Flavours, LANDMARK, of_flavour, other};
use super::rule_source::RuleSource;
use super::{Focus, Unread, nftables, servers};
use crate::rules::{Chain, Rule, Ruleset};
use crate::services::{DISPATCH_CHAINS, dispatch_within, node_port_ips, unused_chains_of_table};
use crate::walk::{Node, OtherFlavour, Packet, RecentLists, Trace, UnfollowedRules, trace_and_supply};

/// The chain that tells that one in IPVS mode was here, or is.
const IPVS_LANDMARK: &str = "KUBE-IPVS-FILTER";
/// Dispatch chains of all Service ports: only jumps to selected Service ports are followed.
const DISPATCH: [&str; 2] = [LANDMARK, "KUBE-NODEPORTS"];

/// The maps of nftables mode that dispatch to Service ports with endpoints.
const SERVICE_MAPS: [&str; 2] = ["service-ips", "service-nodeports"];

/// Chains of the nat table that exist without a jump to them.
const ALWAYS: [&str; 2] = ["KUBE-MARK-MASQ", "KUBE-PROXY-CANARY"];

/// The rules of one family.
pub struct FamilyRules {
    /// The family.
    pub family: IpFamily,
    /// The rules.
    pub ruleset: Ruleset,
    /// Their flavour.
    flavour: Flavour,
    /// Whether all chains were read.
    pub whole: bool,
    /// The node's addresses, in the kernel's order.
    pub addresses: Vec<IpAddr>,
    /// Whether the tool knows `--random-fully`.
    pub random_fully: bool,
    /// Virtual servers, sets and addresses, where a proxy in IPVS mode is, or was.
    pub held: Option<ObservedState>,
    /// All tables of nf_tables but those of iptables.
    pub nftables: nft::Ruleset,
    /// The rules of the flavour that was not read as `ruleset`, if it has any: packets meet both.
    pub other: Option<(Flavour, Ruleset)>,
    /// Rules that packets meet and that are not walked.
    pub unwalked: Vec<UnfollowedRules>,
    source: RuleSource,
    pub(super) tables: NftReader,
    absent: BTreeSet<(String, String)>,
    /// What is wrong with chains that were read while packets were walked.
    problems: Vec<String>,
}

fn proxy_table(tables: &nft::Ruleset) -> Option<&nft::Table> {
    let id = nft::TableId::of(tables.family, TABLE);
    tables.tables.get(&id).filter(|table| is_kube_proxy(table, &id))
}

/// Without the legacy programs there are mostly none of their rules, and nftables mode needs none.
fn or_nothing(
    source: Result<RuleSource, String>,
    outline: &nft::Ruleset,
    unread: &mut Vec<Unread>,
) -> Result<RuleSource, String> {
    source.or_else(|why| {
        proxy_table(outline).ok_or_else(|| why.clone())?;
        if has_legacy_tables(outline.family).unwrap_or(true) {
            unread.push(Unread::new("rules of iptables", why));
        }
        Ok(RuleSource::nothing())
    })
}

impl FamilyRules {
    fn of(family: IpFamily, source: RuleSource, found: &Flavours, unread: &mut Vec<Unread>) -> Self {
        let addresses = SystemHost.addresses(family).unwrap_or_else(|error| {
            unread.push(Unread::new("this node's addresses", error.to_string()));
            Vec::new()
        });
        let mut tables = NftReader::new(family);
        let unwalked = nftables::unwalked(&mut tables, unread);
        Self {
            family,
            ruleset: of_flavour(family, found.flavour),
            flavour: found.flavour,
            whole: false,
            addresses,
            // iptables has had the option longer than the nf_tables flavour.
            random_fully: found.flavour == Flavour::Nft || SystemIptables::knows_random_fully(family, &found.choice),
            held: None,
            nftables: nft::Ruleset::new(family),
            other: None,
            unwalked,
            source,
            tables,
            absent: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// Reads all rules, or those of one Service.
    pub(super) fn read(
        family: IpFamily,
        found: &mut Flavours,
        (focus, is_compared): (&Focus, bool),
        unread: &mut Vec<Unread>,
    ) -> Result<Self, String> {
        let is_complete = focus.service.is_none();
        let outline = nftables::outline(&mut NftReader::new(family), is_complete, unread);
        let source = or_nothing(found.source(family, &outline, is_complete), &outline, unread);
        let wanted = nftables::TableSelection { service: focus.service.as_ref(), is_compared };
        let nftables = nftables::filled(outline, wanted, unread);
        let mut rules = Self { nftables, ..Self::of(family, source?, found, unread) };
        if focus.service.is_some() {
            rules.read_service(focus)?;
        } else {
            rules.read_all()?;
        }
        rules.read_servers(unread)?;
        rules.read_other_flavour(other(found.flavour), unread);
        rules.note_problems(unread);
        Ok(rules)
    }

    /// Reads the rules that every packet meets; chains of Service ports are loaded when a packet meets them.
    ///
    /// # Errors
    /// If the rules cannot be read.
    pub fn for_walking(family: IpFamily, unread: &mut Vec<Unread>) -> Result<Self, String> {
        family.available()?;
        let mut found = Flavours::find();
        let mut tables = NftReader::new(family);
        let outline = nftables::outline(&mut tables, false, unread);
        let source = or_nothing(found.source(family, &outline, false), &outline, unread)?;
        let mut rules = Self { nftables: outline, tables, ..Self::of(family, source, &found, unread) };
        rules.read_others()?;
        rules.read_base()?;
        rules.read_servers(unread)?;
        rules.read_other_flavour(other(found.flavour), unread);
        rules.note_problems(unread);
        Ok(rules)
    }

    /// The chains that lead to Service ports in iptables mode alone, without listing others.
    pub fn for_dispatch(family: IpFamily, unread: &mut Vec<Unread>) -> Self {
        let mut found = Flavours::find();
        let source = found.source(family, &nft::Ruleset::new(family), false);
        let source = source.unwrap_or_else(|why| {
            unread.push(Unread::new(&format!("rules of {family}"), why));
            RuleSource::nothing()
        });
        let mut rules = Self::of(family, source, &found, unread);
        let chains = DISPATCH_CHAINS.iter().map(|(table, chain)| ((*table).to_owned(), (*chain).to_owned()));
        if let Err(why) = rules.load(&chains.collect()) {
            unread.push(Unread::new(&format!("rules of {family}"), why));
        }
        rules
    }

    /// The note that the rules may not be of one moment, if so.
    #[must_use]
    pub fn unsteady(&self) -> Option<Unread> {
        self.source.unsteady().map(|why| Unread::new(&format!("rules of {}", self.family), why))
    }

    /// Notes what is wrong with chains that were read since the last call.
    pub fn note_problems(&mut self, unread: &mut Vec<Unread>) {
        let what = format!("a rule of {}", self.family);
        unread.extend(self.problems.drain(..).map(|problem| Unread::new(&what, problem)));
    }

    /// What IPVS mode has besides rules. Those are few there, and all of them are read.
    fn read_servers(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        let landmark = self.ruleset.chain("filter", IPVS_LANDMARK).is_some();
        // One in iptables mode after one in IPVS mode leaves the device for a while, for connections.
        if !landmark && (self.has_service_chains() || !servers::present()) {
            return Ok(());
        }
        if !self.whole {
            self.ruleset = of_flavour(self.family, self.flavour);
            self.read_all()?;
        }
        self.held = Some(servers::read(self.family, self.names("--match-set"), unread));
        Ok(())
    }

    fn read_others(&mut self) -> Result<(), String> {
        for table in ["raw", "mangle", "filter", "security"] {
            self.problems.extend(self.source.read_table(&mut self.ruleset, table)?);
        }
        Ok(())
    }

    fn read_all(&mut self) -> Result<(), String> {
        self.problems.extend(self.source.read_all(&mut self.ruleset)?);
        self.source.forget();
        self.whole = true;
        Ok(())
    }

    /// All but the chains of other Services.
    fn read_service(&mut self, focus: &Focus) -> Result<(), String> {
        self.read_others()?;
        self.read_base()?;
        let of_service = focus.service.as_ref().map(ToString::to_string).unwrap_or_default();
        let is_likely = |rule: &Rule| rule.text.contains(&of_service);
        let entries = dispatch_within(&self.ruleset, &is_likely, &|name, _| focus.wants(name));
        // Chains that have lost the rule that led to them are only in the whole table.
        let landmark = self.ruleset.chain("nat", LANDMARK);
        if landmark.is_some_and(|chain| entries.is_empty() || chain.rules.is_empty()) {
            self.ruleset = of_flavour(self.family, self.flavour);
            return self.read_all();
        }
        let chains = entries.iter().filter_map(|entry| entry.jump_target()).map(|to| ("nat".to_owned(), to.to_owned()));
        let mut chains: BTreeSet<_> = chains.collect();
        if let Some(hash) = entries.iter().find_map(|entry| entry.jump_target()?.rsplit_once('-')) {
            chains
                .extend(["SVC", "SVL", "EXT", "FW"].map(|kind| ("nat".to_owned(), format!("KUBE-{kind}-{}", hash.1))));
        }
        self.load(&chains)?;
        self.follow()
    }

    /// The nat table without what only Service ports use.
    fn read_base(&mut self) -> Result<(), String> {
        let builtin = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];
        let chains = builtin.iter().chain(&ALWAYS);
        self.load(&chains.map(|chain| ("nat".to_owned(), (*chain).to_owned())).collect())?;
        self.follow()
    }

    /// Loads the chains that loaded chains jump to, except for jumps of the dispatch chains.
    fn follow(&mut self) -> Result<(), String> {
        loop {
            let unread = self.ruleset.unread("nat", |from, _| !DISPATCH.contains(&from));
            let new: BTreeSet<_> = unread.into_iter().map(|chain| ("nat".to_owned(), chain)).collect();
            // The last rule of the dispatch chain jumps to the node ports.
            let mut new: BTreeSet<_> = new.difference(&self.absent).cloned().collect();
            let node_ports = ("nat".to_owned(), DISPATCH[1].to_owned());
            if self.ruleset.chain("nat", LANDMARK).is_some()
                && self.ruleset.chain("nat", DISPATCH[1]).is_none()
                && !self.absent.contains(&node_ports)
            {
                new.insert(node_ports);
            }
            if new.is_empty() {
                return Ok(());
            }
            self.load(&new)?;
        }
    }

    /// Reads these chains, unless that was tried. Whether any came that was not there.
    ///
    /// # Errors
    /// If the tool cannot be run.
    pub fn load(&mut self, chains: &BTreeSet<(String, String)>) -> Result<bool, String> {
        let mut any = false;
        for (table, chain) in chains {
            if self.whole || self.ruleset.chain(table, chain).is_some_and(|chain| !chain.rules.is_empty()) {
                continue;
            }
            match self.source.read_chain(&mut self.ruleset, table, chain)? {
                Some(problems) => {
                    self.problems.extend(problems);
                    any = true;
                }
                None => _ = self.absent.insert((table.clone(), chain.clone())),
            }
        }
        Ok(any)
    }

    /// Walks a packet through all rules; parts of nf_tables are read when the packet meets them.
    ///
    /// # Errors
    /// If rules cannot be read, or the kernel would refuse them.
    pub fn walk(&mut self, packet: &Packet, node: &Node, memory: &RecentLists) -> Result<Trace, String> {
        let Self { ruleset, nftables, tables, other, .. } = self;
        let other = other.as_ref().map(|(flavour, ruleset)| OtherFlavour { ruleset, flavour: flavour.name() });
        let mut supply = |ruleset: &mut nft::Ruleset, lack: &nft::UnreadPart| tables.read_part(ruleset, lack);
        trace_and_supply((ruleset, other), nftables, (packet, node, memory), &mut supply)
    }

    /// The table of a kube-proxy in nftables mode, ours or the real one.
    #[must_use]
    pub fn proxy_table(&self) -> Option<&nft::Table> {
        proxy_table(&self.nftables)
    }

    /// Adds elements of the kube-proxy's table that were looked up.
    pub fn record(&mut self, found: nftables::LookedUp) {
        let table = self.nftables.tables.get_mut(&nft::TableId::of(self.family, TABLE));
        let Some(table) = table else { return };
        for ((set, key), element) in found {
            if let Some(set) = table.sets.get_mut(&set) {
                set.elements.record(&key, element);
            }
        }
    }

    /// An address of the node that serves node ports; in nftables mode one that the table lists, if it lists any.
    #[must_use]
    pub fn node_port_ip(&self) -> Option<IpAddr> {
        let listed = self.proxy_table().and_then(node_port_ips).unwrap_or_default();
        let own = || self.addresses.iter().copied().find(|ip| !ip.is_loopback());
        listed.first().copied().or_else(own)
    }

    /// The rules of a chain as `iptables-save` or `nft list` prints them; none where the chain was not read. `table` is
    /// iptables' table, or the family and the name of one of nf_tables.
    #[must_use]
    pub fn chain_text(&self, table: &str, chain: &str) -> Vec<String> {
        if let Some(chain) = self.ruleset.chain(table, chain) {
            return chain.rules.iter().map(|rule| rule.text.to_string()).collect();
        }
        let Some((id, table)) = self.nftables.tables.iter().find(|(id, _)| id.to_string() == table) else {
            return Vec::new();
        };
        let rules = table.chains.get(chain).and_then(|chain| chain.rules.as_ref());
        rules.into_iter().flatten().map(|rule| rule.text(id, table)).collect()
    }

    /// The dispatch chain or map, if it is empty although chains of Services have rules; `None` if it was not read whole.
    #[must_use]
    pub fn emptied_dispatch(&self, unread: &[Unread]) -> Option<String> {
        if let Some(table) = self.proxy_table().filter(|_| self.ruleset.chain("nat", LANDMARK).is_none()) {
            let id = nft::TableId::of(self.family, TABLE);
            let has_rules = |name: &String| {
                let chain = table.chains.iter().find(|(other, _)| ***other == **name);
                chain.and_then(|(_, chain)| chain.rules.as_ref()).is_some_and(|rules| !rules.is_empty())
            };
            let empty = |map: &str| table.sets.get(map).is_some_and(|set| set.elements.is_empty());
            let emptied = SERVICE_MAPS.into_iter().all(empty)
                && !nftables::lacks_parts(&id, unread)
                && unused_chains_of_table(table).iter().any(has_rules);
            return emptied.then(|| format!("map {} of table {id}", SERVICE_MAPS[0]));
        }
        let is_empty = self.ruleset.chain("nat", LANDMARK)?.rules.is_empty();
        let has_rules = |(name, chain): (&str, &Chain)| name.starts_with("KUBE-SVC-") && !chain.rules.is_empty();
        let emptied = is_empty && self.whole && self.ruleset.chains("nat").any(has_rules);
        emptied.then(|| format!("chain {LANDMARK} of table nat of {}", self.family))
    }

    /// Whether a table of iptables is dormant: its rules are there, and the kernel runs none of its chains.
    #[must_use]
    pub fn is_dormant(&self, table: &str) -> bool {
        let is_of_nft = self.flavour == Flavour::Nft;
        is_of_nft && self.nftables.table(table).is_some_and(|table| table.dormant)
    }

    /// Whether there is a chain of a Service port.
    #[must_use]
    pub fn has_service_chains(&self) -> bool {
        self.ruleset.chains("nat").any(|(name, _)| name.starts_with("KUBE-SVC-") || name.starts_with("KUBE-SEP-"))
    }

    /// Whether any rule has that word.
    #[must_use]
    pub fn names(&self, word: &str) -> bool {
        let (tables, word) = (self.ruleset.tables(), format!(" {word} "));
        let rules = tables.flat_map(|table| self.ruleset.chains(table)).flat_map(|(_, chain)| &chain.rules);
        rules.into_iter().any(|rule| rule.text.contains(&word))
    }
}
