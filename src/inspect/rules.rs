//! The rules that the kernel holds, of the flavour in use, and whether there are more in the other.
//!
//! In: what is asked for. Out: a [`Ruleset`] for each family. Must not know: what the rules mean to Services, beyond
//! which chains lead to them: where single chains are cheap to read, others are left out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proxier::IpFamily;
use proxier::inspect::rules::Ruleset;
use proxier::inspect::services::{dispatch_of, node_port_ips};
use proxier::inspect::walk::{Memory, Node, Packet, Trace, trace_and_supply};
use proxier::ipvs::Held;
use proxier::kernel::{
    Choice, Flavour, Host, IptablesTool, NftReader, RuleReader, SystemHost, SystemIptables, choose_flavour,
};
use proxier::netfilter::nft::held as nft;
use proxier::nftables::TABLE;

use super::report::Unread;
use super::{Focus, NFTABLES, nftables, servers};
use crate::terminal::Progress;

/// The chain that tells that a kube-proxy in iptables mode was here.
const LANDMARK: &str = "KUBE-SERVICES";
/// The chain that tells that one in IPVS mode was here, or is.
const IPVS_LANDMARK: &str = "KUBE-IPVS-FILTER";
/// Chains that lead to all Service ports: of these only what is asked for is followed.
const DISPATCH: [&str; 2] = [LANDMARK, "KUBE-NODEPORTS"];

/// Chains of the nat table that are there whatever leads to them.
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
    pub held: Option<Held>,
    /// All tables of nf_tables but those of iptables.
    pub nftables: nft::Ruleset,
    /// Why there is none, where iptables is not installed: nftables mode does without.
    reader: Result<RuleReader, String>,
    tables: NftReader,
    absent: BTreeSet<(String, String)>,
}

/// All rules.
pub struct Rules {
    /// How the flavour was chosen.
    pub choice: Choice,
    /// The flavour that was read.
    pub flavour: Flavour,
    /// The families that could be read.
    pub families: Vec<FamilyRules>,
    /// Families that have kube-proxy's rules in the flavour that is not in use.
    pub in_other: Vec<IpFamily>,
}

impl Rules {
    /// Reads them.
    pub fn read(focus: &Focus, unread: &mut Vec<Unread>) -> Self {
        let Flavours { choice, flavour, in_other } = Flavours::find();
        let mut families = Vec::new();
        for family in IpFamily::ALL {
            // A family that the kernel has not has no rules to be read.
            if family.available().is_err() {
                continue;
            }
            let read = FamilyRules::open(family, flavour, &choice, unread).and_then(|mut rules| {
                rules.nftables = nftables::read(family, unread);
                if focus.service.is_some() && rules.reads_single_chains() {
                    rules.read_service(focus, unread)?;
                } else {
                    rules.read_all(unread)?;
                }
                rules.read_servers(unread)?;
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

    /// Whether there is a kube-proxy's rule at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.families.iter().any(|rules| rules.ruleset.chain("nat", LANDMARK).is_some())
    }
}

/// Which flavour packets meet.
struct Flavours {
    choice: Choice,
    flavour: Flavour,
    in_other: Vec<IpFamily>,
}

impl Flavours {
    fn find() -> Self {
        let choice = choose_flavour();
        let chosen = choice.flavour.unwrap_or(Flavour::Nft);
        let other = if chosen == Flavour::Nft { Flavour::Legacy } else { Flavour::Nft };
        let present = |flavour| IpFamily::ALL.into_iter().filter(|family| has_landmark(*family, flavour)).collect();
        let (here, in_other): (Vec<IpFamily>, Vec<IpFamily>) = (present(chosen), present(other));
        // Rules that are only in the other flavour are those that packets meet.
        let flavour = if here.is_empty() && !in_other.is_empty() { other } else { chosen };
        Self { choice, flavour, in_other }
    }
}

fn has_landmark(family: IpFamily, flavour: Flavour) -> bool {
    let Ok(reader) = RuleReader::find(family, flavour) else { return false };
    if reader.reads_single_chains() {
        return matches!(reader.chain("nat", LANDMARK), Ok(Some(_)));
    }
    let (mut found, declaration) = (false, format!(":{LANDMARK} "));
    let read = reader.save(Some("nat"), &mut |line| found |= line.starts_with(&declaration));
    read.is_ok() && found
}

impl FamilyRules {
    fn open(family: IpFamily, flavour: Flavour, choice: &Choice, unread: &mut Vec<Unread>) -> Result<Self, String> {
        let reader = RuleReader::find(family, flavour).map_err(|error| error.to_string());
        let addresses = SystemHost.addresses(family).unwrap_or_else(|error| {
            unread.push(Unread::new("this node's addresses", error.to_string()));
            Vec::new()
        });
        let tool = SystemIptables::find(family, choice);
        let random_fully = tool.is_ok_and(|tool| tool.random_fully());
        let (ruleset, absent) = (Ruleset::new(family), BTreeSet::new());
        let (nftables, tables) = (nft::Ruleset::new(family), NftReader::new(family));
        Ok(Self {
            family,
            ruleset,
            whole: false,
            addresses,
            random_fully,
            held: None,
            nftables,
            reader,
            tables,
            absent,
        })
    }

    /// What every packet meets; the chains of Service ports are loaded as packets come to them.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn for_walking(family: IpFamily, unread: &mut Vec<Unread>) -> Result<Self, String> {
        family.available()?;
        let Flavours { choice, flavour, .. } = Flavours::find();
        let mut rules = Self::open(family, flavour, &choice, unread)?;
        match rules.tables.outline() {
            Ok(outline) => rules.nftables = outline,
            Err(error) => unread.push(Unread::new("tables of nf_tables", format!("{family}: {error}"))),
        }
        if rules.reads_single_chains() {
            rules.read_others(unread)?;
            rules.read_base()?;
        } else {
            rules.read_all(unread)?;
        }
        rules.read_servers(unread)?;
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

    fn reads_single_chains(&self) -> bool {
        self.reader.as_ref().is_ok_and(RuleReader::reads_single_chains)
    }

    fn read_others(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        let Ok(reader) = &self.reader else { return Ok(()) };
        for table in ["raw", "mangle", "filter"] {
            let text = reader.table(table).map_err(|error| error.to_string())?;
            for problem in self.ruleset.read_chains(table, &text) {
                unread.push(Unread::new(&format!("a rule of {}", self.family), problem.to_string()));
            }
        }
        Ok(())
    }

    fn read_all(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        self.save(unread)?;
        self.whole = true;
        Ok(())
    }

    fn save(&mut self, unread: &mut Vec<Unread>) -> Result<(), String> {
        let tool = match &self.reader {
            Ok(tool) => tool,
            Err(why) if self.proxy_table().is_none() => {
                unread.push(Unread::new(&format!("rules of {}", self.family), why.clone()));
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        let mut progress = Progress::new(&format!("reading rules of {}", self.family));
        let mut reader = self.ruleset.reader();
        let result = tool.save(None, &mut |line| {
            progress.step();
            reader.line(line);
        });
        for problem in reader.finish() {
            unread.push(Unread::new(&format!("a rule of {}", self.family), problem.to_string()));
        }
        result.map_err(|error| error.to_string())
    }

    /// All but the chains of other Services.
    fn read_service(&mut self, focus: &Focus, unread: &mut Vec<Unread>) -> Result<(), String> {
        self.read_others(unread)?;
        self.read_base()?;
        let entries = dispatch_of(&self.ruleset, &|name, _| focus.wants(name));
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

    /// Loads what the loaded chains lead to, but for the dispatch.
    fn follow(&mut self) -> Result<(), String> {
        loop {
            let unread = self.ruleset.unread("nat", |from, _| !DISPATCH.contains(&from));
            let new: BTreeSet<_> = unread.into_iter().map(|chain| ("nat".to_owned(), chain)).collect();
            // The last rule of the dispatch leads to the node ports.
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
        let Ok(reader) = &self.reader else { return Ok(false) };
        for (table, chain) in chains {
            if self.whole || self.ruleset.chain(table, chain).is_some_and(|chain| !chain.rules.is_empty()) {
                continue;
            }
            match reader.chain(table, chain).map_err(|error| error.to_string())? {
                Some(text) => {
                    let problems = self.ruleset.read_chains(table, &text);
                    any |= problems.is_empty();
                }
                None => _ = self.absent.insert((table.clone(), chain.clone())),
            }
        }
        Ok(any)
    }

    /// Walks a packet through all rules; of nftables' is read what it comes to.
    ///
    /// # Errors
    /// If rules cannot be read, or are such as the kernel would not take.
    pub fn walk(&mut self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Trace, String> {
        let Self { ruleset, nftables, tables, .. } = self;
        let mut supply = |ruleset: &mut nft::Ruleset, lack: &nft::Lack| tables.supply(ruleset, lack);
        trace_and_supply(ruleset, nftables, (packet, node, memory), &mut supply)
    }

    /// The table of a kube-proxy in nftables mode, ours or the real one.
    #[must_use]
    pub fn proxy_table(&self) -> Option<&nft::Table> {
        let id = nft::TableId::of(self.family, TABLE);
        self.nftables.tables.get(&id).filter(|table| table.is_kube_proxy(&id))
    }

    /// One of the node's addresses that node ports work on: in nftables mode, those that the table lists, if it does.
    #[must_use]
    pub fn node_port_ip(&self) -> Option<IpAddr> {
        let listed = self.proxy_table().and_then(node_port_ips).unwrap_or_default();
        let own = || self.addresses.iter().copied().find(|ip| !ip.is_loopback());
        listed.first().copied().or_else(own)
    }

    /// Whether there is a chain of a Service port.
    #[must_use]
    pub fn has_service_chains(&self) -> bool {
        self.ruleset.chains("nat").any(|(name, _)| name.starts_with("KUBE-SVC-") || name.starts_with("KUBE-SEP-"))
    }

    /// Whether any rule has that word.
    #[must_use]
    pub fn names(&self, word: &str) -> bool {
        let tables = self.ruleset.tables();
        let rules = tables.flat_map(|table| self.ruleset.chains(table)).flat_map(|(_, chain)| &chain.rules);
        rules.into_iter().any(|rule| rule.text.contains(&format!(" {word} ")))
    }
}
