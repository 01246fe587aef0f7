//! The composition point of the commands that look at a node: `dump`, `trace`, `diagnose` and `/debug/rules`.
//!
//! [`proxier_inspect::node`] reads what the kernel holds and the node's facts. Here are what it should hold, by the objects and the
//! running proxy's configuration, and the arguments that say where those are. Of `netfilter::kernel` it only reads.

pub mod arguments;
mod compare;
pub mod gate;
pub mod model;
mod objects;
pub mod obstacles;
pub mod report;
mod running;
mod server_names;
pub mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use netfilter::IpFamily;
use netfilter::kernel::{self, SystemNftables, for_each_flow, node};
use netfilter::nft::ruleset::TableId;
use proxier::conntrack::StaleFlows;
use proxier::ipvs::{self, Expected, ObservedState};
use proxier::model::{Mode, NamespacedName, Scope, ServicePort, ServicePortName, Snapshot};
use proxier::nftables::TABLE;
use proxier::track::Tracker;
use proxier_inspect::drift::Difference;
use proxier_inspect::drift::behaviour::{self, TrafficSources};
use proxier_inspect::drift::nftables::{differences as table_differs, is_ours};
use proxier_inspect::flows::FlowCount;
use proxier_inspect::node::{COMPARISON, FamilyRules, Focus, NFTABLES, NodeRulesets, Unread, is_of, nftables, paths};
use proxier_inspect::rules::Rule;
use proxier_inspect::servers::differences as servers_differ;
use proxier_inspect::services::{
    ServicePortView, add_health_checks, add_model, endpoint_in, from_iptables_within, from_ipvs, from_nftables,
    has_own_addresses, note_draining, unused_chains, unused_chains_of_table,
};

use self::arguments::{ResolvedSources, Sources};
use self::running::{Running, as_seen_by};
use crate::config::ValidatedConfig;

/// Commands of ours that do not run a proxy.
const COMMANDS: [&str; 6] = ["demo", "dump", "trace", "diagnose", "preflight", "top"];

/// Loads the objects of one Service or of all.
pub type Load<'a> = dyn Fn(Option<&NamespacedName>) -> Result<BTreeMap<IpFamily, Tracker>, String> + Sync + 'a;

/// The state of a node: rules, objects and configuration.
pub struct NodeInspection {
    /// The rules.
    pub rules: NodeRulesets,
    /// The objects of each family, if there is a source of them.
    pub objects: Option<BTreeMap<IpFamily, Tracker>>,
    /// The configuration that the proxy should have.
    pub settings: ValidatedConfig,
    /// What could not be read.
    pub unread: Vec<Unread>,
    /// The running proxy that the configuration was taken from, in one line.
    pub configuration: Option<String>,
    /// Services that exist and have no ports for a proxy: headless ones, those of type ExternalName, those of other proxies.
    pub portless: BTreeSet<NamespacedName>,
}

/// How long a tool may take where a person waits for the answer.
const TOOL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// How long a change that has come may take until it is in the kernel: the minimum interval of syncs and a sync.
pub const SYNC_TIME: std::time::Duration = std::time::Duration::from_millis(1500);

/// Limits the tools that are run to what a person waits for.
pub fn limit_tools() {
    kernel::set_program_timeout(TOOL_TIMEOUT);
}

/// Reads the state of the node. State that cannot be read is listed in `unread`.
///
/// # Errors
/// If the configuration is invalid.
pub fn inspect_node(sources: &Sources, focus: &Focus) -> Result<NodeInspection, String> {
    let mut unread = Vec::new();
    if sources.leave_configuration_open() {
        match Running::find(&proxy_processes()) {
            Ok(Some(running)) => return Ok(inspect_resolved(&sources.of_running(running)?, focus)),
            Ok(None) => {}
            Err(why) => unread.push(Unread::new("the running kube-proxy's configuration", why)),
        }
    }
    // Without a configured mode, an existing table of nftables mode decides.
    let has_table = |family: IpFamily| kernel::has_table(family, TABLE).unwrap_or(false);
    let guessed = sources.leave_mode_open() && IpFamily::ALL.into_iter().any(has_table);
    let asked = sources.resolve_for_mode(guessed.then_some(NFTABLES))?;
    let mut seen = inspect_resolved(&asked, focus);
    seen.rules.is_nftables_configured &= !guessed;
    seen.unread.extend(unread);
    if guessed && seen.rules.mode() != Some(NFTABLES) {
        seen.settings = sources.resolve()?.settings;
    }
    Ok(seen)
}

/// The configuration that [`inspect_node`] would find if the proxy's mode were nftables.
///
/// # Errors
/// If it cannot be read, or is invalid in that mode.
pub fn in_nftables_mode(sources: &Sources) -> Result<ValidatedConfig, String> {
    // A running proxy whose configuration cannot be read is noted by `inspect_node`.
    let running =
        sources.leave_configuration_open().then(|| Running::find(&proxy_processes()).ok()).flatten().flatten();
    match running {
        Some(running) => sources.of_running_in_nftables_mode(running),
        None => sources.in_nftables_mode(),
    }
}

/// Reads the node of a proxy with that configuration.
fn inspect_resolved(asked: &ResolvedSources, focus: &Focus) -> NodeInspection {
    let portless = Mutex::default();
    let load = |only: Option<&NamespacedName>| as_seen_by(asked.files_of, || objects::load(asked, only, &portless))?;
    let load: Option<&Load<'_>> = if asked.has_objects() { Some(&load) } else { None };
    let seen = inspect_with(asked.settings.clone(), load, focus);
    let portless = std::mem::take(&mut *portless.lock().unwrap_or_else(PoisonError::into_inner));
    NodeInspection { configuration: asked.taken_from.clone(), portless, ..seen }
}

/// The processes that run a kube-proxy in this network namespace, with their command lines.
fn proxy_processes() -> Vec<(u32, Vec<String>)> {
    let command = |words: &[String]| words.iter().skip(1).any(|word| COMMANDS.contains(&word.as_str()));
    node::processes("kube-proxy").into_iter().filter(|(_, words)| !command(words)).collect()
}

/// Reads the state of the node with known settings. `load`: loads objects; `None`: there are none.
pub fn inspect_with(settings: ValidatedConfig, load: Option<&Load<'_>>, focus: &Focus) -> NodeInspection {
    let mut unread = Vec::new();
    let (rules, mut loaded) = std::thread::scope(|scope| {
        // Both take long at a big cluster.
        let loading = load.map(|load| scope.spawn(|| load(focus.service.as_ref())));
        let mut rules = NodeRulesets::read(focus, load.is_some(), &mut unread);
        rules.is_nftables_configured = settings.mode == Mode::Nftables;
        let loaded = loading.map(|loading| loading.join().unwrap_or_else(|_| Err("reading them panicked".to_owned())));
        (rules, loaded)
    });
    let needs_others = |service: &NamespacedName| {
        let alone = loaded.as_ref().and_then(|loaded| loaded.as_ref().ok());
        rules.needs_others(service) && !alone.is_some_and(|objects| is_alone(&rules, &settings, objects, service))
    };
    if let Some(load) = load.filter(|_| focus.service.as_ref().is_some_and(needs_others)) {
        loaded = Some(load(None));
    }
    let objects = loaded.and_then(|loaded| loaded.map_err(|why| unread.insert(0, Unread::new("objects", why))).ok());
    NodeInspection { rules, objects, settings, unread, configuration: None, portless: BTreeSet::new() }
}

/// Whether the kernel can choose endpoints by a hash, if a Service port asks for that.
fn can_hash(family: IpFamily, snapshot: &Snapshot<'_>) -> bool {
    proxier::nftables::can_hash(&mut SystemNftables::default(), family, snapshot)
}

/// Whether the table of nftables mode, in our layout, shows that no other Service claims an address of this one.
fn is_alone(
    rules: &NodeRulesets,
    settings: &ValidatedConfig,
    objects: &BTreeMap<IpFamily, Tracker>,
    service: &NamespacedName,
) -> bool {
    let is_alone = |rules: &FamilyRules| {
        let Some((table, tracker)) = rules.proxy_table().zip(objects.get(&rules.family)) else { return false };
        let snapshot = tracker.snapshot(settings.proxier.node_ip(rules.family, tracker.node()));
        is_ours(table) && has_own_addresses(table, &snapshot, &|name| is_of(name, service))
    };
    rules.mode() == Some(NFTABLES) && rules.families.iter().all(is_alone)
}

impl NodeInspection {
    /// The Service ports, with endpoints, flows and states.
    pub fn services(&mut self, focus: &Focus) -> Vec<ServicePortView> {
        if self.rules.mode() == Some("ipvs") && self.objects.is_none() && focus.service.is_some() {
            let why = "in IPVS mode only objects tell them: give --kubeconfig, --config or --objects";
            self.unread.push(Unread::new("names of Services", why));
        }
        let mut all = Vec::new();
        for at in 0..self.rules.families.len() {
            all.extend(self.services_of(at, focus));
        }
        all.sort_by(|a, b| (&a.name, a.protocol, a.family).cmp(&(&b.name, b.protocol, b.family)));
        all
    }

    fn services_of(&mut self, at: usize, focus: &Focus) -> Vec<ServicePortView> {
        let rules = &self.rules.families[at];
        let family = rules.family;
        let tracker = self.objects.as_ref().and_then(|objects| objects.get(&family));
        let table = rules.proxy_table().filter(|_| self.rules.mode() == Some(NFTABLES));
        let in_table = table.is_some();
        let mut views = match (&rules.held, table) {
            (Some(held), _) => self.servers(rules, held, tracker, focus),
            (None, Some(table)) => {
                let snapshot = tracker.map(|tracker| self.snapshot(family, tracker));
                from_nftables(family, table, snapshot.as_ref(), &|name| focus.wants_text(name))
            }
            (None, None) => {
                // A Service port without a comment is known by what its chains are called.
                let named: BTreeSet<String> =
                    tracker.map(|tracker| compare::hashes(&self.snapshot(family, tracker), focus)).unwrap_or_default();
                let of_service = focus.service.as_ref().map(ToString::to_string);
                let likely = |rule: &Rule| {
                    let is_in = |part: &String| rule.text.contains(part.as_str());
                    of_service.as_ref().is_none_or(|service| is_in(service) || named.iter().any(is_in))
                };
                from_iptables_within(&rules.ruleset, &likely, &|name, key| focus.wants(name) || named.contains(key))
            }
        };
        let stale = tracker.map(|tracker| {
            let snapshot = self.snapshot(family, tracker);
            add_model(&mut views, &snapshot, family, |name| focus.wants(Some(name)));
            note_draining(&mut views);
            if in_table {
                add_health_checks(&mut views, &snapshot);
            }
            // In nftables mode no rule translates node ports at loopback addresses, so flows to them stay as they are.
            let translated = |address: &&IpAddr| !(in_table && address.is_loopback());
            let addresses = rules.addresses.iter().filter(translated).copied().collect();
            StaleFlows::of(&snapshot, &Scope::Full, &BTreeSet::new()).at_node(addresses)
        });
        if let Some(ip) = focus.endpoint {
            views.retain(|view| view.endpoints.iter().any(|e| e.address.is_some_and(|address| address.ip() == ip)));
        }
        let mut count = FlowCount::new(&views, &rules.addresses, stale.as_ref());
        match for_each_flow(family, &mut |live| count.add(&live.flow, live.state)) {
            Ok(false) => {}
            Ok(true) => {
                self.unread.push(Unread::new("flows", "the table changed while it was read: counts may be low"))
            }
            Err(error) => self.unread.push(Unread::new("flows", format!("{family}: {error}"))),
        }
        count.finish(&mut views);
        views
    }

    /// What differs from what should be; `None` without objects, or if the comparison failed, which is noted.
    #[must_use]
    pub fn differences(&mut self, focus: &Focus, views: &[ServicePortView]) -> Option<Vec<Difference>> {
        let looked_up = self.look_up_elements(focus);
        looked_up.and_then(|()| self.compared(focus, views)).unwrap_or_else(|why| {
            self.unread.push(Unread::new(COMPARISON, why));
            None
        })
    }

    /// Looks up the elements that the objects of one Service ask for: those of its endpoints are not read whole.
    fn look_up_elements(&mut self, focus: &Focus) -> Result<(), String> {
        if self.rules.mode() != Some(NFTABLES) || focus.service.is_none() {
            return Ok(());
        }
        for at in 0..self.rules.families.len() {
            let rules = &self.rules.families[at];
            let tracker = self.objects.as_ref().and_then(|objects| objects.get(&rules.family));
            let Some((table, tracker)) = rules.proxy_table().zip(tracker).filter(|(table, _)| is_ours(table)) else {
                continue;
            };
            let ports = self.ports_of(rules.family, tracker, focus);
            let snapshot = Snapshot { ports: &ports, ..self.snapshot(rules.family, tracker) };
            let proxier = &self.settings.proxier;
            let (family, addresses) = (rules.family, &rules.addresses);
            let hashes = can_hash(family, &snapshot);
            let found = nftables::look_up_expected(family, proxier, &snapshot, addresses, table, hashes)?;
            self.rules.families[at].record(found);
        }
        Ok(())
    }

    /// The selected Service ports.
    fn ports_of(&self, family: IpFamily, tracker: &Tracker, focus: &Focus) -> BTreeMap<ServicePortName, ServicePort> {
        let snapshot = self.snapshot(family, tracker);
        let selected = snapshot.ports.iter().filter(|(name, _)| focus.wants(Some(name)));
        selected.map(|(name, port)| (name.clone(), port.clone())).collect()
    }

    fn compared(&self, focus: &Focus, views: &[ServicePortView]) -> Result<Option<Vec<Difference>>, String> {
        let Some(objects) = &self.objects else { return Ok(None) };
        let mut all = Vec::new();
        for rules in &self.rules.families {
            let Some(tracker) = objects.get(&rules.family) else { continue };
            if let Some(held) = &rules.held {
                all.extend(self.server_differences(rules, held, tracker, focus)?);
                continue;
            }
            if self.rules.mode() == Some(NFTABLES) {
                all.extend(self.table_differences(rules, tracker, focus)?);
                continue;
            }
            let snapshot = self.snapshot(rules.family, tracker);
            all.extend(compare::differences(rules, &self.settings.proxier, &snapshot, focus, views));
        }
        Ok(Some(all))
    }

    /// The Service ports in IPVS mode.
    fn servers(
        &self,
        rules: &FamilyRules,
        held: &ObservedState,
        tracker: Option<&Tracker>,
        focus: &Focus,
    ) -> Vec<ServicePortView> {
        let snapshot = tracker.map(|tracker| self.snapshot(rules.family, tracker));
        let expected = tracker.and_then(|tracker| self.expected_servers(rules, held, tracker).ok());
        let mut views = from_ipvs(rules.family, held, snapshot.as_ref().zip(expected.as_ref()));
        if let Some(service) = &focus.service {
            views.retain(|view| is_of(&view.name, service));
        }
        if snapshot.is_none() {
            note_draining(&mut views);
        }
        views
    }

    /// What differs in the table of nftables mode.
    fn table_differences(
        &self,
        rules: &FamilyRules,
        tracker: &Tracker,
        focus: &Focus,
    ) -> Result<Vec<Difference>, String> {
        let (family, table) = (rules.family, rules.proxy_table());
        let id = TableId::of(family, TABLE);
        if nftables::lacks_parts(&id, &self.unread) {
            return Err(format!("table {id} could not be read whole"));
        }
        let snapshot = self.snapshot(family, tracker);
        let endpoints = |set: &str, key: &[u8]| endpoint_in(table?, set, key);
        let proxier = &self.settings.proxier;
        let hashes = can_hash(family, &snapshot);
        let expected = proxier::nftables::expected(family, proxier, &snapshot, &rules.addresses, &endpoints, hashes);
        let mut found = match table.filter(|table| !is_ours(table)) {
            // Of another layout only what it does can be compared.
            Some(table) => {
                let (node, pods) = (paths::node_of(rules), proxier.local_detector.resolve(family, tracker.node()));
                let world = TrafficSources { node: &node, pods: pods.as_ref() };
                behaviour::differences(family, &expected, table, world, &|name| focus.wants_text(name))?
            }
            None => {
                let selects = |name: &str| focus.wants_text(name);
                let selected = focus.service.as_ref().map(|_| &selects as &dyn Fn(&str) -> bool);
                table_differs(family, &expected, table, selected)
            }
        };
        if let Some(service) = &focus.service {
            // Rules common to all Services count for each; set elements without a Service do not.
            found.retain(|one| one.service.as_ref().map_or(!one.kind.is_of_set(), |name| is_of(name, service)));
        }
        Ok(found)
    }

    fn snapshot<'a>(&self, family: IpFamily, tracker: &'a Tracker) -> Snapshot<'a> {
        tracker.snapshot(self.settings.proxier.node_ip(family, tracker.node()))
    }

    fn expected_servers(
        &self,
        rules: &FamilyRules,
        held: &ObservedState,
        tracker: &Tracker,
    ) -> Result<Expected, String> {
        let ValidatedConfig { proxier, ipvs: of_ipvs, .. } = &self.settings;
        let snapshot = self.snapshot(rules.family, tracker);
        let addresses = held.node_addresses(&rules.addresses);
        ipvs::expected(rules.family, proxier, of_ipvs, &snapshot, &addresses, rules.random_fully)
            .map_err(|error| error.to_string())
    }

    fn server_differences(
        &self,
        rules: &FamilyRules,
        held: &ObservedState,
        tracker: &Tracker,
        focus: &Focus,
    ) -> Result<Vec<Difference>, String> {
        let expected = self.expected_servers(rules, held, tracker)?;
        let excluded = &self.settings.ipvs.exclude_cidrs;
        let mut found = servers_differ(&expected, held, &rules.ruleset, excluded)?;
        if let Some(service) = &focus.service {
            found.retain(|one| one.service.as_ref().map_or(one.is_of_rules(), |name| is_of(name, service)));
        }
        Ok(found)
    }

    /// Signs of a proxy in another mode than iptables.
    #[must_use]
    pub fn other_modes(&self) -> Vec<String> {
        let nftables_in_use = self.rules.mode() == Some(NFTABLES);
        let has_table = |family: &IpFamily| !nftables_in_use && kernel::has_table(*family, TABLE).unwrap_or(false);
        let nftables = IpFamily::ALL.into_iter().filter(has_table);
        let mut modes: Vec<String> =
            nftables.map(|family| format!("a table kube-proxy of nftables mode for {family}")).collect();
        // The mode that is in use is no other one.
        let iptables = self.rules.families.iter().any(FamilyRules::has_service_chains);
        if nftables_in_use && iptables {
            modes.push("chains KUBE-SVC-… of iptables mode".to_owned());
        }
        if self.rules.mode() == Some("ipvs") && iptables {
            modes.push("a chain KUBE-IPVS-FILTER of IPVS mode".to_owned());
        }
        modes
    }

    /// The processes that are a running kube-proxy in this network namespace.
    #[must_use]
    pub fn running_proxies(&self) -> Vec<u32> {
        proxy_processes().into_iter().map(|(pid, _)| pid).collect()
    }

    /// Chains of Service ports without references; empty unless all chains were read.
    #[must_use]
    pub fn unused_chains(&self) -> Vec<String> {
        let of = |rules: &FamilyRules| match rules.proxy_table() {
            _ if !rules.whole => Vec::new(),
            Some(table) if self.rules.mode() == Some(NFTABLES) => unused_chains_of_table(table),
            _ => unused_chains(&rules.ruleset),
        };
        self.rules.families.iter().flat_map(of).collect()
    }
}
