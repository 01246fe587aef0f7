//! Reads nftables tables back, ours and upstream's: every Service port, and exactly the injected differences.
//!
//! Runs on every case and step with both tables loaded into a real kernel. Requires root.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use golden::case::{Case, Mode, cases, differences as known_differences, folder};
use golden::netns::Netns;
use golden::replay::Replay;
use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::kernel::NftReader;
use netfilter::nft::COMMENT_MAX;
use netfilter::nft::ruleset::{Elements, Table};
use proxier::model::{CategorizedEndpoints, Destination, Snapshot};
use proxier::nftables::{Expected, TABLE, expected};
use proxier_inspect::drift::behaviour::{self, TrafficSources};
use proxier_inspect::drift::nftables::{differences, is_ours};
use proxier_inspect::drift::{Difference, DifferenceKind as Is};
use proxier_inspect::node::is_of;
use proxier_inspect::node::nftables::{has_element_for_each_endpoint, look_up_expected};
use proxier_inspect::services::{
    AddressKind, AddressVerdict, EndpointView, ServicePortView, endpoint_in, from_nftables, unused_chains_of_table,
};
use proxier_inspect::walk::Node;

/// The program whose table is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    TheRealOnes,
}

/// A kernel to load tables into.
struct Kernel(Netns);

impl Kernel {
    fn new() -> Self {
        Self(Netns::new())
    }

    /// Makes it hold these tables and no others.
    fn load(&self, text: &str) {
        self.nft(&format!("flush ruleset\n{text}"));
    }

    fn nft(&self, text: &str) {
        let mut tool = self.0.command("nft");
        let mut tool = tool.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nft");
        tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        let output = tool.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn table(&self, family: IpFamily) -> Table {
        let read = self.0.enter(|| NftReader::new(family).read_all());
        let (mut ruleset, problems) = read.expect("nf_tables");
        assert_eq!(problems, [""; 0]);
        let id = netfilter::nft::ruleset::TableId::of(family, TABLE);
        ruleset.tables.remove(&id).expect("the table")
    }
}

/// Calls `look` with the table after each step of each case of nftables mode.
fn each_state(whose: Whose, mut look: impl FnMut(&str, &Replay, IpFamily, &Table)) {
    let (known, kernel) = (known_differences(&folder()), Kernel::new());
    let wrong = |case: &Case| known.contains_key(&format!("{}/nftables", case.name));
    for case in cases().into_iter().filter(|case| case.has(Mode::Nftables)) {
        if whose == Whose::TheRealOnes && wrong(&case) {
            continue;
        }
        let mut replay = Replay::new(&case, Mode::Nftables);
        for (step, objects) in case.stored.iter().enumerate() {
            replay.step(objects);
            kernel.load(&match whose {
                Whose::Ours => replay.tables(),
                Whose::TheRealOnes => case.recorded_tables(step),
            });
            for family in IpFamily::ALL {
                let table = kernel.table(family);
                assert_eq!(is_ours(&table), whose == Whose::Ours);
                look(&format!("{} step {step} {family}", case.name), &replay, family, &table);
            }
        }
    }
}

fn should_be(replay: &Replay, family: IpFamily, table: &Table) -> Expected {
    let endpoints = |set: &str, key: &[u8]| endpoint_in(table, set, key);
    replay.model(family, |snapshot, config| {
        expected(family, config, snapshot, &Replay::addresses(family), &endpoints, true)
    })
}

/// The differences of either table.
fn drift(replay: &Replay, family: IpFamily, table: &Table) -> Vec<Difference> {
    let should_be = should_be(replay, family, table);
    if is_ours(table) {
        return differences(family, &should_be, Some(table), None);
    }
    let any: IpNet = if family == IpFamily::V4 { "0.0.0.0/0" } else { "::/0" }.parse().expect("a network");
    let mut addresses = Replay::addresses(family);
    addresses.retain(|ip| !ip.is_loopback());
    let node = Node { addresses, routes: vec![(any, "eth0".to_owned())], ..Node::default() };
    replay.model(family, |snapshot, config| {
        let pods = config.local_detector.resolve(family, snapshot.node);
        let world = TrafficSources { node: &node, pods: pods.as_ref() };
        behaviour::differences(family, &should_be, table, world, &|_| true).expect("a walk")
    })
}

fn all_is_as_it_should_be(whose: Whose) {
    let (mut states, mut ports, mut endpoints) = (0, 0, 0);
    each_state(whose, |name, replay, family, table| {
        assert_eq!(drift(replay, family, table), [], "{name}");
        // The real one makes chains for external addresses that it then leaves out, and deletes chains late.
        if whose == Whose::Ours {
            assert_eq!(unused_chains_of_table(table), [""; 0], "{name}");
        }
        replay.model(family, |snapshot, _| {
            let alone = from_nftables(family, table, None, &|_| true);
            let with_objects = from_nftables(family, table, Some(snapshot), &|_| true);
            for views in [&alone, &with_objects] {
                let reported: BTreeSet<(String, &str)> = views.iter().map(|v| (v.name.clone(), v.protocol)).collect();
                let cut = |name: String| {
                    if name.len() > COMMENT_MAX { name[..COMMENT_MAX - 3].to_owned() + "..." } else { name }
                };
                let with = std::ptr::eq(views, &raw const with_objects);
                let known = snapshot.ports.keys().map(|name| {
                    let text = name.to_string();
                    (if with { text } else { cut(text) }, name.protocol.name())
                });
                assert_eq!(reported, known.collect(), "{name}");
            }
            for view in &with_objects {
                ports += 1;
                endpoints += check(name, view, snapshot);
            }
            let kinds = |views: &[ServicePortView]| -> BTreeSet<(bool, Option<IpAddr>, u16, &'static str, bool)> {
                let all = views.iter().flat_map(|view| view.addresses.iter().map(|a| (view.protocol, a)));
                all.map(|(protocol, a)| {
                    (a.kind == AddressKind::ClusterIp, a.ip, a.port, protocol, a.verdict == AddressVerdict::Rejected)
                })
                .collect()
            };
            assert_eq!(kinds(&alone), kinds(&with_objects), "{name}");
        });
        states += 1;
    });
    assert!(states > 250 && ports > 1000 && endpoints > 1000, "{states} states, {ports} ports, {endpoints} endpoints");
}

#[test]
fn our_tables_are_read_whole_without_drift() {
    all_is_as_it_should_be(Whose::Ours);
}

#[test]
fn upstreams_tables_are_read_whole_without_altered_behaviour() {
    all_is_as_it_should_be(Whose::TheRealOnes);
}

/// Compares what the table tells of a Service port with its objects; how many endpoints it has.
fn check(name: &str, view: &ServicePortView, snapshot: &Snapshot<'_>) -> usize {
    let mut ports = snapshot.ports.iter();
    let found = ports.find(|(known, _)| known.to_string() == view.name && known.protocol.name() == view.protocol);
    let (port_name, port) = found.expect("its objects");
    let all = snapshot.endpoints.of(port_name);
    let used = CategorizedEndpoints::of(&all, port, snapshot.node);
    let at = format!("{name}: {}", view.name);
    let external = port.destinations().count() > 1;
    // An address without traffic under a policy has no endpoints of it.
    let (cluster, local) = (
        !port.internal_local || external,
        (port.internal_local || (external && port.external_local)) && !used.local.is_empty(),
    );
    let addresses = |list: &[&proxier::model::Endpoint], asked: bool| -> BTreeSet<SocketAddr> {
        list.iter().filter(|_| asked).map(|e| e.address).collect()
    };
    let with = |share: fn(&EndpointView) -> Option<f64>| -> BTreeSet<SocketAddr> {
        let of_it = view.endpoints.iter().filter(|endpoint| share(endpoint).is_some());
        of_it.filter_map(|endpoint| endpoint.address).collect()
    };
    assert_eq!(with(|endpoint| endpoint.share), addresses(&used.cluster, cluster), "{at}");
    assert_eq!(with(|endpoint| endpoint.local_share), addresses(&used.local, local), "{at}");
    for shares in [
        view.endpoints.iter().filter_map(|e| e.share).collect::<Vec<f64>>(),
        view.endpoints.iter().filter_map(|e| e.local_share).collect(),
    ] {
        let sum: f64 = shares.iter().sum();
        assert!(shares.is_empty() || (sum - 1.0).abs() < 1e-9, "{at}: the odds are {sum}");
    }
    let reported: BTreeSet<Destination> = view
        .addresses
        .iter()
        .map(|a| a.ip.map_or(Destination::NodePort(a.port), |ip| Destination::Address(SocketAddr::new(ip, a.port))))
        .collect();
    assert_eq!(reported, port.destinations().collect(), "{at}");
    let rejected = view.addresses.iter().any(|address| address.verdict == AddressVerdict::Rejected);
    assert_eq!(rejected, !used.any, "{at}");
    assert_eq!(view.affinity_seconds, port.affinity_seconds.filter(|_| !used.reachable.is_empty()), "{at}");
    assert_eq!(view.notes, [""; 0], "{at}");
    used.reachable.len()
}

/// Chance that is the same every time: a linear congruential generator.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }

    fn take<T>(&mut self, from: &mut Vec<T>) -> T {
        from.swap_remove(self.below(from.len()))
    }
}

/// What an edit is about: an element of a set, or a chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    Element(String, Box<[u8]>),
    Chain(String),
}

/// Every element and chain of a table that can be edited; two edits of a chain could be reported as one.
fn spots(table: &Table) -> Vec<Spot> {
    let sets = table.sets.iter().filter(|(_, set)| !set.is_anonymous() && !set.is_dynamic());
    let elements =
        sets.flat_map(|(name, set)| set.elements.iter().map(|e| Spot::Element(name.to_string(), e.key.clone())));
    let chains = table.chains.iter().filter(|(_, chain)| chain.rules.as_ref().is_some_and(|rules| !rules.is_empty()));
    elements.chain(chains.map(|(name, _)| Spot::Chain(name.to_string()))).collect()
}

/// An edit of our table in nft syntax, and the expected difference.
fn edit(table: &Table, should_be: &Expected, spot: &Spot, number: usize, chance: &mut Chance) -> (String, Edit) {
    let of = format!("ip {TABLE}");
    match spot {
        Spot::Element(name, key) => {
            let (set, wanted) = (&table.sets[&**name], &should_be.sets[&**name].elements[key]);
            let element = set.elements.iter().find(|element| element.key == *key).expect("it is there");
            let service = wanted.1.as_ref().map(ToString::to_string);
            let (text, delete) = (
                set.text(element).to_string(),
                format!("delete element {of} {name} {{ {} }}\n", set.key_text(element)),
            );
            let value = match (set.value.as_deref(), chance.below(2)) {
                (Some([]), 1) if !text.ends_with(" : drop") => Some("drop"),
                (Some([_, ..]), 1) => Some("203.0.113.99 . 9"),
                _ => None,
            };
            let Some(value) = value else { return (delete, (Is::MissingElement, name.clone(), service)) };
            let (key, _) = text.rsplit_once(" : ").expect("a value");
            (
                format!("{delete}add element {of} {name} {{ {key} : {value} }}\n"),
                (Is::AlteredElement, name.clone(), service),
            )
        }
        Spot::Chain(name) => {
            let rules = table.chains[&**name].rules.as_ref().expect("rules");
            let handle = rules[chance.below(rules.len())].handle;
            let service = should_be.chains[&**name].owner.as_ref().map(ToString::to_string);
            match chance.below(2) {
                0 => (format!("delete rule {of} {name} handle {handle}\n"), (Is::MissingRule, name.clone(), service)),
                _ => {
                    let strange = format!("insert rule {of} {name} handle {handle} ip saddr 203.0.113.{number} drop\n");
                    (strange, (Is::UnexpectedRule, name.clone(), service))
                }
            }
        }
    }
}

/// An edit as the difference that it makes.
type Edit = (Is, String, Option<String>);

/// Compares each Service alone, without the objects of others and with lookups of its endpoints, with `all` the differences.
fn each_service_alone(kernel: &Kernel, replay: &Replay, family: IpFamily, all: &[Difference]) {
    let whole = kernel.table(family);
    replay.model(family, |snapshot, config| {
        let services: BTreeSet<_> = snapshot.ports.keys().map(|name| name.service.clone()).collect();
        for service in services {
            let own = snapshot.ports.iter().filter(|(name, _)| name.service == service);
            let ports = own.map(|(name, port)| (name.clone(), port.clone())).collect();
            let alone = Snapshot { ports: &ports, ..*snapshot };
            let mut table = whole.clone();
            for (name, set) in &mut table.sets {
                if has_element_for_each_endpoint(family, name, set) {
                    set.elements = Elements::default();
                }
            }
            let addresses = Replay::addresses(family);
            let found = kernel.0.enter(|| look_up_expected(family, config, &alone, &addresses, &table, true));
            for ((set, key), element) in found.expect("lookups") {
                table.sets.get_mut(&set).expect("a set").elements.record(&key, element);
            }
            let endpoints = |set: &str, key: &[u8]| endpoint_in(&table, set, key);
            let should_be = expected(family, config, &alone, &addresses, &endpoints, true);
            let selects = |name: &str| is_of(name, &service);
            let of_service = |one: &&Difference| one.service.as_ref().is_some_and(|name| selects(name));
            let found = differences(family, &should_be, Some(&table), Some(&selects));
            let found: Vec<&Difference> = found.iter().filter(of_service).collect();
            for one in all.iter().filter(of_service) {
                assert!(found.contains(&one), "{service}: {one:?} in {found:#?}");
            }
            // An element that several Services need is the first one's where all are known.
            let is_same = |one: &Difference, other: &Difference| {
                Difference { service: None, ..one.clone() } == Difference { service: None, ..other.clone() }
            };
            for one in found {
                assert!(all.iter().any(|other| is_same(one, other)), "{service}: {one:?} in {all:#?}");
            }
        }
    });
}

#[test]
fn edits_of_our_table_are_found_and_nothing_else() {
    let (family, kernel) = (IpFamily::V4, Kernel::new());
    let mut chance = Chance(20_261_125);
    for (name, counts) in [
        ("502-affinity-local-policies", &[1, 10][..]),
        ("210-lb-source-ranges", &[1, 10]),
        ("220-lb-etp-local", &[1, 10, 100]),
    ] {
        let case = cases().into_iter().find(|case| case.name == name).expect("a case");
        let mut replay = Replay::new(&case, Mode::Nftables);
        replay.step(&case.stored[0]);
        for count in counts {
            for _ in 0..3 {
                kernel.load(&replay.tables());
                let table = kernel.table(family);
                let should_be = should_be(&replay, family, &table);
                let (mut free, mut script, mut edits) = (spots(&table), String::new(), Vec::new());
                for number in 0..*count {
                    let spot = chance.take(&mut free);
                    let (text, edit) = edit(&table, &should_be, &spot, number, &mut chance);
                    script += &text;
                    edits.push(edit);
                }
                // A foreign element beside them.
                script += "add element ip kube-proxy cluster-ips { 192.0.2.77 }\n";
                edits.push((Is::UnexpectedElement, "cluster-ips".to_owned(), None));
                kernel.nft(&script);
                let found = drift(&replay, family, &kernel.table(family));
                let mut reported: Vec<Edit> =
                    found.iter().map(|d| (d.kind, d.chain.clone(), d.service.clone())).collect();
                reported.sort();
                edits.sort();
                assert_eq!(reported, edits, "{name}: {script}{found:#?}");
                each_service_alone(&kernel, &replay, family, &found);
            }
        }
    }
}

/// The Service port that a chain or an element of the real one's table is about.
fn owner(table: &Table, should_be: &Expected, spot: &Spot) -> Option<String> {
    match spot {
        Spot::Element(set, key) => {
            let mut sets =
                ["service-ips", "no-endpoint-services", "firewall-ips", "service-nodeports", "no-endpoint-nodeports"]
                    .iter();
            let of = |name: &str| should_be.sets[name].elements.get(key).and_then(|(_, owner)| owner.as_ref());
            let found = if table.sets[&**set].is_map() { sets.find_map(|name| of(name)) } else { of(set) };
            found.map(ToString::to_string)
        }
        Spot::Chain(name) => {
            let (kind, rest) = name.split_once('-')?;
            ["service", "external", "local", "firewall", "endpoint"].contains(&kind).then_some(())?;
            let rest = rest.split_once('-')?.1.split("__").next()?;
            let mut words = rest.split('/');
            let (namespace, name, _, port) = (words.next()?, words.next()?, words.next()?, words.next()?);
            Some(format!("{namespace}/{name}:{port}"))
        }
    }
}

/// Whether an element does what is done without it: other ports of cluster IPs are rejected as those without endpoints are.
fn is_needless(table: &Table, spot: &Spot) -> bool {
    let Spot::Element(name, key) = spot else { return false };
    let set = &table.sets[&**name];
    let rejects =
        || set.elements.iter().any(|e| e.key == *key && set.text(e).to_string().ends_with("goto reject-chain"));
    let of_cluster_ip = || table.sets["cluster-ips"].elements.iter().any(|ip| key.starts_with(&ip.key));
    name == "no-endpoint-services" && rejects() && of_cluster_ip()
}

#[test]
fn edits_of_upstreams_table_are_found_with_their_service_ports() {
    let (family, kernel) = (IpFamily::V4, Kernel::new());
    let mut chance = Chance(20_261_126);
    for (name, counts) in [
        ("402-both-local", &[1, 1, 1, 1, 1, 1, 10][..]),
        ("502-affinity-local-policies", &[1, 1, 1, 1, 1, 1, 10]),
        ("210-lb-source-ranges", &[1, 1, 1, 1, 10]),
        ("900-many-services", &[1, 10, 100]),
    ] {
        let case = cases().into_iter().find(|case| case.name == name).expect("a case");
        let mut replay = Replay::new(&case, Mode::Nftables);
        replay.step(&case.stored[0]);
        for count in counts {
            kernel.load(&case.recorded_tables(0));
            let table = kernel.table(family);
            let should_be = should_be(&replay, family, &table);
            let mut free = spots(&table);
            // What is for all is in the other test; here each edit has one Service port.
            free.retain(|spot| owner(&table, &should_be, spot).is_some() && !is_needless(&table, spot));
            let (mut script, mut owners) = (String::new(), BTreeSet::new());
            for _ in 0..*count {
                let spot = chance.take(&mut free);
                owners.insert(owner(&table, &should_be, &spot));
                script += &match &spot {
                    Spot::Element(set, key) => {
                        let held = &table.sets[&**set];
                        let element = held.elements.iter().find(|element| element.key == *key).expect("it is there");
                        format!("delete element ip {TABLE} {set} {{ {} }}\n", held.key_text(element))
                    }
                    Spot::Chain(chain) => {
                        let rules = table.chains[&**chain].rules.as_ref().expect("rules");
                        format!("delete rule ip {TABLE} {chain} handle {}\n", rules[chance.below(rules.len())].handle)
                    }
                };
            }
            kernel.nft(&script);
            let found = drift(&replay, family, &kernel.table(family));
            let reported: BTreeSet<Option<String>> =
                found.iter().map(|difference| difference.service.clone()).collect();
            assert_eq!(reported, owners, "{name}: {script}{found:#?}");
        }
    }
}
