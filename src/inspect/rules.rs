//! The rules that the kernel holds, of the flavour in use, and whether there are more in the other.
//!
//! For one Service, the chains of other Services are not read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::kernel::{
    Flavour, FlavourChoice, Host, NftReader, SystemHost, SystemIptables, detect_flavour, has_chain, has_legacy_tables,
};
use netfilter::nft::ruleset as nft;
use proxier::ipvs::ObservedState;
use proxier::model::NamespacedName;
use proxier::nftables::{TABLE, is_kube_proxy};
use proxier::xtables::FLAVOUR_HINTS;
use proxier_inspect::rules::{Chain, Ruleset};
use proxier_inspect::services::{DispatchRule, dispatch_of, node_port_ips, unused_chains_of_table};
use proxier_inspect::walk::{Node, OtherFlavour, Packet, RecentLists, Trace, UnfollowedRules, trace_and_supply};

use super::report::Unread;
use super::rule_text::RuleText;
use super::{Focus, NFTABLES, nftables, servers};
use crate::terminal::Progress;

/// The chain that tells that a kube-proxy in iptables mode was here.
const LANDMARK: &str = "KUBE-SERVICES";
/// The chain that tells that one in IPVS mode was here, or is.
const IPVS_LANDMARK: &str = "KUBE-IPVS-FILTER";
/// Dispatch chains of all Service ports: only jumps to selected Service ports are followed.
const DISPATCH: [&str; 2] = [LANDMARK, "KUBE-NODEPORTS"];

/// The maps of nftables mode that dispatch to Service ports with endpoints.
const SERVICE_MAPS: [&str; 2] = ["service-ips", "service-nodeports"];

/// Beginnings of the names of chains of single Service ports.
const OF_PORTS: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];

/// Chains of the nat table that exist without a jump to them.
const ALWAYS: [&str; 2] = ["KUBE-MARK-MASQ", "KUBE-PROXY-CANARY"];

/// The rules of one family.
pub struct FamilyRules {
    /// The family.
    pub family: IpFamily,
    /// The rules.
    pub ruleset: Ruleset,
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
    text: RuleText,
    pub(super) tables: NftReader,
    absent: BTreeSet<(String, String)>,
}

/// All rules.
pub struct NodeRulesets {
    /// How the flavour was chosen.
    pub choice: FlavourChoice,
    /// The flavour that was read.
    pub flavour: Flavour,
    /// The families that could be read.
    pub families: Vec<FamilyRules>,
    /// Families that have kube-proxy's rules in the flavour that is not in use.
    pub in_other: Vec<IpFamily>,
}

impl NodeRulesets {
    /// Reads them.
    pub fn read(focus: &Focus, unread: &mut Vec<Unread>) -> Self {
        let Flavours { choice, flavour, in_other, mut texts } = Flavours::find();
        unread.extend(choice.unread.iter().map(|why| Unread::new("which flavour of iptables rules are in", why)));
        let mut families = Vec::new();
        for family in IpFamily::ALL {
            // A family that the kernel has not has no rules to be read.
            if family.available().is_err() {
                continue;
            }
            let text = texts.remove(&family).unwrap_or_else(|| RuleText::open(family, flavour));
            let tables = nftables::read(family, focus.service.as_ref(), unread);
            let read = or_nothing(text, &tables, unread).and_then(|text| {
                let mut rules = FamilyRules { nftables: tables, ..FamilyRules::of(family, text, &choice, unread) };
                if focus.service.is_some() {
                    rules.read_service(focus, unread)?;
                } else {
                    rules.read_all(unread)?;
                }
                rules.read_servers(unread)?;
                rules.read_other_flavour(other(flavour), unread);
                Ok(rules)
            });
            match read {
                Ok(rules) => families.push(rules),
                Err(why) => unread.push(Unread::new(&format!("rules of {family}"), why)),
            }
        }
        Self { choice, flavour, families, in_other }
    }

    /// Those of a family.
    #[must_use]
    pub fn of(&self, family: IpFamily) -> Option<&FamilyRules> {
        self.families.iter().find(|rules| rules.family == family)
    }

    /// The mode whose rules these are. IPVS mode has a chain `KUBE-SERVICES` too.
    #[must_use]
    pub fn mode(&self) -> Option<&'static str> {
        match () {
            () if self.families.iter().any(|rules| rules.held.is_some()) => Some("ipvs"),
            () if self.any() => Some("iptables"),
            () => self.families.iter().any(|rules| rules.proxy_table().is_some()).then_some(NFTABLES),
        }
    }

    /// Whether the data of a Service depends on others. Only in iptables mode each Service has its own rules; in other
    /// modes the first Service by name owns an address that several claim, and all claimants decide which flows to it are
    /// stale.
    #[must_use]
    pub fn needs_others(&self, service: &NamespacedName) -> bool {
        if self.mode().is_some_and(|mode| mode != "iptables") {
            return true;
        }
        self.families.iter().any(|rules| {
            let entries = dispatch_of(&rules.ruleset, &|_, _| true);
            let is_own = |entry: &&DispatchRule| entry.name().is_some_and(|name| name.service == *service);
            let (own, others): (Vec<&DispatchRule>, Vec<&DispatchRule>) = entries.iter().partition(is_own);
            let claimed: BTreeSet<_> = own.into_iter().filter_map(DispatchRule::destination).collect();
            let of_service = |entry: &&DispatchRule| entry.name().is_some() || entry.leads_to().is_some();
            others.into_iter().filter(of_service).filter_map(DispatchRule::destination).any(|to| claimed.contains(&to))
        })
    }

    /// Whether there is a kube-proxy's rule at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.families.iter().any(|rules| rules.ruleset.chain("nat", LANDMARK).is_some())
    }
}

/// Which flavour packets meet.
struct Flavours {
    choice: FlavourChoice,
    flavour: Flavour,
    in_other: Vec<IpFamily>,
    /// What had to be read to find out, of that flavour.
    texts: BTreeMap<IpFamily, Result<RuleText, String>>,
}

impl Flavours {
    fn find() -> Self {
        let choice = detect_flavour(&FLAVOUR_HINTS);
        let chosen = choice.flavour.unwrap_or(Flavour::Nft);
        let (here, texts) = present(chosen);
        let (in_other, other_texts) = present(other(chosen));
        // Packets meet the rules of the other flavour if only that one has some.
        let is_other = here.is_empty() && !in_other.is_empty();
        let (flavour, texts) = if is_other { (other(chosen), other_texts) } else { (chosen, texts) };
        Self { choice, flavour, in_other, texts }
    }
}

/// The families that have kube-proxy's rules in a flavour, and what was read for that. A chain without rules is none.
fn present(flavour: Flavour) -> (Vec<IpFamily>, BTreeMap<IpFamily, Result<RuleText, String>>) {
    let (mut families, mut texts) = (Vec::new(), BTreeMap::new());
    for family in IpFamily::ALL {
        let there = match flavour {
            Flavour::Nft => {
                let (mut tables, id) = (NftReader::new(family), nft::TableId::of(family, "nat"));
                has_chain(family, "nat", LANDMARK).unwrap_or(false)
                    && tables.rules(&id, LANDMARK).map_or(true, |rules| !rules.is_empty())
            }
            Flavour::Legacy if !has_legacy_tables(family).unwrap_or(true) => false,
            Flavour::Legacy => {
                let text = texts.entry(family).or_insert_with(|| RuleText::open(family, flavour));
                let rules = text.as_ref().ok().and_then(|text| text.chain("nat", LANDMARK).ok()?);
                rules.is_some_and(|rules| rules.contains("-A "))
            }
        };
        families.extend(there.then_some(family));
    }
    (families, texts)
}

fn other(flavour: Flavour) -> Flavour {
    if flavour == Flavour::Nft { Flavour::Legacy } else { Flavour::Nft }
}

fn proxy_table(tables: &nft::Ruleset) -> Option<&nft::Table> {
    let id = nft::TableId::of(tables.family, TABLE);
    tables.tables.get(&id).filter(|table| is_kube_proxy(table, &id))
}

/// Without iptables installed there are mostly none of its rules, and nftables mode needs none. Existing tables are noted.
fn or_nothing(
    text: Result<RuleText, String>,
    tables: &nft::Ruleset,
    unread: &mut Vec<Unread>,
) -> Result<RuleText, String> {
    text.or_else(|why| {
        proxy_table(tables).ok_or_else(|| why.clone())?;
        let outline = NftReader::new(tables.family).read_outline().unwrap_or_else(|_| nft::Ruleset::new(tables.family));
        let made = outline.tables.iter().filter(|(id, table)| table.is_iptables(id));
        let made: Vec<String> = made.map(|(id, _)| id.to_string()).collect();
        if !made.is_empty() {
            let why =
                format!("the iptables tools are not here, and the kernel has tables of theirs: {}", made.join(", "));
            unread.push(Unread::new("rules of iptables", why));
        }
        Ok(RuleText::nothing())
    })
}

impl FamilyRules {
    fn of(family: IpFamily, text: RuleText, choice: &FlavourChoice, unread: &mut Vec<Unread>) -> Self {
        let addresses = SystemHost.addresses(family).unwrap_or_else(|error| {
            unread.push(Unread::new("this node's addresses", error.to_string()));
            Vec::new()
        });
        let random_fully = SystemIptables::knows_random_fully(family, choice);
        let (ruleset, absent) = (Ruleset::new(family), BTreeSet::new());
        let (nftables, mut tables) = (nft::Ruleset::new(family), NftReader::new(family));
        let unwalked = nftables::unwalked(&mut tables, unread);
        Self {
            family,
            ruleset,
            whole: false,
            addresses,
            random_fully,
            held: None,
            nftables,
            other: None,
            unwalked,
            text,
            tables,
            absent,
        }
    }

    /// Reads the rules that every packet meets; chains of Service ports are loaded when a packet meets them.
    ///
    /// # Errors
    /// If the rules cannot be read.
    pub fn for_walking(family: IpFamily, unread: &mut Vec<Unread>) -> Result<Self, String> {
        family.available()?;
        let Flavours { choice, flavour, mut texts, .. } = Flavours::find();
        let text = texts.remove(&family).unwrap_or_else(|| RuleText::open(family, flavour));
        drop(texts);
        let mut tables = NftReader::new(family);
        let outline = tables.read_outline().unwrap_or_else(|error| {
            unread.push(Unread::new("tables of nf_tables", format!("{family}: {error}")));
            nft::Ruleset::new(family)
        });
        nftables::note_restless(&mut tables, "tables of nf_tables", unread);
        let mut rules = Self::of(family, or_nothing(text, &outline, unread)?, &choice, unread);
        (rules.nftables, rules.tables) = (outline, tables);
        rules.read_others(unread)?;
        rules.read_base()?;
        rules.read_servers(unread)?;
        rules.read_other_flavour(other(flavour), unread);
        Ok(rules)
    }

    /// What IPVS mode has besides rules. Those are few there, and all of them are read.
    fn read_servers(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        let landmark = self.ruleset.chain("filter", IPVS_LANDMARK).is_some();
        // One in iptables mode after one in IPVS mode leaves the device for a while, for connections.
        if !landmark && (self.has_service_chains() || !servers::present()) {
            return Ok(());
        }
        if !self.whole {
            self.ruleset = Ruleset::new(self.family);
            self.read_all(unread)?;
        }
        self.held = Some(servers::read(self.family, self.names("--match-set"), unread));
        Ok(())
    }

    fn read_others(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        for table in ["raw", "mangle", "filter", "security"] {
            let text = self.text.table(table)?;
            for problem in self.ruleset.read_chains(table, &text) {
                unread.push(Unread::new(&format!("a rule of {}", self.family), problem.to_string()));
            }
            self.attach(table, unread)?;
        }
        Ok(())
    }

    /// Looks up what nft put into a table of iptables, as far as its text does not tell it. Chains of Service ports are
    /// left out: there are many, and a kube-proxy repairs them.
    fn attach(&mut self, table: &str, unread: &mut Vec<Unread>) -> Result<(), String> {
        if !matches!(self.text, RuleText::Tool(_)) {
            return Ok(());
        }
        let id = nft::TableId::of(self.family, table);
        let is_own = |chain: &str| OF_PORTS.iter().any(|beginning| chain.starts_with(beginning));
        let chains = self.ruleset.chains(table).filter(|(name, chain)| !is_own(name) && !chain.rules.is_empty());
        for chain in chains.map(|(name, _)| name.to_owned()).collect::<Vec<_>>() {
            let rules = self.tables.rules(&id, &chain).map_err(|error| format!("rules of chain {chain}: {error}"))?;
            if let Err(why) = self.ruleset.attach(table, &chain, rules) {
                unread.push(Unread::new(&format!("rules of {}", self.family), why));
            }
        }
        Ok(())
    }

    fn read_all(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        self.save(unread)?;
        let tables: Vec<String> = self.ruleset.tables().map(str::to_owned).collect();
        tables.iter().try_for_each(|table| self.attach(table, unread))?;
        self.text.forget();
        self.whole = true;
        Ok(())
    }

    fn save(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        let mut progress = Progress::new(&format!("reading rules of {}", self.family));
        let mut reader = self.ruleset.reader();
        let result = self.text.all(&mut |line| {
            progress.step();
            reader.line(line);
        });
        for problem in reader.finish() {
            unread.push(Unread::new(&format!("a rule of {}", self.family), problem.to_string()));
        }
        result
    }

    /// All but the chains of other Services.
    fn read_service(&mut self, focus: &Focus, unread: &mut Vec<Unread>) -> Result<(), String> {
        self.read_others(unread)?;
        self.read_base()?;
        let entries = dispatch_of(&self.ruleset, &|name, _| focus.wants(name));
        // Chains that have lost the rule that led to them are only in the whole table.
        let landmark = self.ruleset.chain("nat", LANDMARK);
        if landmark.is_some_and(|chain| entries.is_empty() || chain.rules.is_empty()) {
            self.ruleset = Ruleset::new(self.family);
            return self.read_all(unread);
        }
        let chains = entries.iter().filter_map(|entry| entry.leads_to()).map(|to| ("nat".to_owned(), to.to_owned()));
        let mut chains: BTreeSet<_> = chains.collect();
        if let Some(hash) = entries.iter().find_map(|entry| entry.leads_to()?.rsplit_once('-')) {
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
            match self.text.chain(table, chain)? {
                Some(text) => {
                    let problems = self.ruleset.read_chains(table, &text);
                    any |= problems.is_empty();
                    if matches!(self.text, RuleText::Tool(_)) {
                        let read = self.tables.rules(&nft::TableId::of(self.family, table), chain);
                        let rules = read.map_err(|error| format!("rules of chain {chain}: {error}"))?;
                        self.ruleset.attach(table, chain, rules)?;
                    }
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
