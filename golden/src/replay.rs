//! Replays a case through tracking, planning and a fake kernel, quickly and without root.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::{DeviceName, Host, NftTables, SystemNftables};
use netfilter::testing::{FakeHost, FakeIpSets, FakeIptables, FakeIpvs, FakeLinks, FakeNftables};
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::ipvs::{self, Expected, Ipvs, ObservedState};
use proxier::model::{Config, IpvsConfig, LocalDetector, NamespacedName, NodeInfo, NodePortAddresses, Snapshot};
use proxier::nftables::Nftables;
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translator};
use serde_json::Value;

use crate::case::{Case, Kind as Part, Mode};

/// The interface addresses of the recorded node, in the kernel's order.
const ADDRESSES: [&str; 6] = ["127.0.0.1", "::1", "192.168.60.2", "fd00:60::2", "192.168.50.2", "fd00:50::2"];

struct Family {
    family: IpFamily,
    tracker: Tracker,
    backend: Box<dyn Backend>,
    tables: FakeIptables,
}

/// The kernel state of IPVS and nftables mode, shared by both families.
#[derive(Default)]
struct Shared {
    servers: FakeIpvs,
    sets: FakeIpSets,
    links: FakeLinks,
    nftables: FakeNftables,
}

/// A replayed case, in both families.
pub struct Replay {
    config: Config,
    ipvs: IpvsConfig,
    translator: Translator,
    families: [Family; 2],
    shared: Shared,
}

impl Replay {
    /// The state before the first objects.
    ///
    /// # Panics
    /// If the case's configuration has an unsupported field.
    #[must_use]
    pub fn new(case: &Case, mode: Mode) -> Self {
        Self::with(case, mode, None)
    }

    /// A replay in nftables mode on the running kernel.
    ///
    /// Call [`Replay::step`] in the node's network namespace.
    ///
    /// # Panics
    /// If the case's configuration has an unsupported field.
    #[must_use]
    pub fn in_kernel(case: &Case) -> Self {
        Self::with(case, Mode::Nftables, Some(|| Box::new(SystemNftables::default())))
    }

    fn with(case: &Case, mode: Mode, nftables: Option<fn() -> Box<dyn NftTables>>) -> Self {
        let fields: Value = serde_saphyr::from_str(&case.config).expect("a configuration");
        let config = config(&fields, mode);
        let shared = Shared::default();
        let families = IpFamily::ALL.map(|family| {
            let (tables, mut host) = (FakeIptables::default(), FakeHost::default());
            host.set_addresses(ADDRESSES.iter().map(|ip| ip.parse().expect("an address")));
            host.allow_counters();
            if fields.pointer("/conntrack/tcpBeLiberal") == Some(&Value::Bool(true)) {
                host.set_sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", 1).expect("a sysctl");
            }
            let backend: Box<dyn Backend> = match mode {
                Mode::Iptables => {
                    Box::new(Iptables::new(family, config.clone(), Box::new(tables.clone()), Box::new(host)))
                }
                Mode::Nftables => {
                    let kernel = nftables.map_or_else(|| Box::new(shared.nftables.clone()) as _, |kernel| kernel());
                    Box::new(Nftables::new(family, config.clone(), kernel, Box::new(host)))
                }
                Mode::Ipvs => {
                    let kernel = shared.kernel(&tables, host);
                    Box::new(Ipvs::new(family, config.clone(), ipvs_config(&fields), kernel).expect("a scheduler"))
                }
            };
            let mut tracker = Tracker::default();
            tracker.request_full_sync();
            Family { family, tracker, backend, tables }
        });
        // The recording API server had these, which the stored objects do not show.
        let mut families = families;
        for (family, net) in families.iter_mut().zip(["10.96.0.0/12", "fd00:10:96::/108"]) {
            let name = NamespacedName::new("", "kubernetes");
            family.tracker.apply(Change::ServiceCidr(name, vec![net.parse().expect("a network")]));
        }
        let translator = Translator::new(&config.node_name, config.hide_external_ips);
        Self { config, ipvs: ipvs_config(&fields), translator, families, shared }
    }

    /// Replays a step with all objects after it.
    ///
    /// # Panics
    /// If an object or a sync is refused.
    pub fn step(&mut self, objects: &Path) {
        let text = std::fs::read_to_string(objects).expect("the objects of a step");
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        let mark = |change: fn(Kind) -> Change, families: &mut [Family; 2]| {
            for family in families {
                for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::ServiceCidr) {
                    family.tracker.apply(change(kind));
                }
            }
        };
        mark(Change::Listing, &mut self.families);
        for object in documents {
            let name = object["kind"].as_str().unwrap_or_default().to_owned();
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else { continue };
            let translated =
                self.translator.applied(objects::decoded(kind, object)).unwrap_or_else(|error| panic!("{error}"));
            for (family, change) in translated.changes {
                let family = self.families.iter_mut().find(|f| f.family == family).expect("both families");
                family.tracker.apply(change);
            }
        }
        mark(Change::Listed, &mut self.families);
        let now = Instant::now();
        for family in &mut self.families {
            let scope = family.tracker.take_scope();
            let node: &NodeInfo = family.tracker.node();
            let node_ip = self.config.node_ip(family.family, node);
            let synced = family.backend.sync(&family.tracker.snapshot(node_ip), &scope, now);
            assert_eq!(synced.expect("a sync").rejected, [], "{}", family.family);
        }
    }

    /// The model and configuration of a family.
    ///
    /// # Panics
    /// Never, because both families exist.
    pub fn model<T>(&self, family: IpFamily, look: impl FnOnce(&Snapshot<'_>, &Config) -> T) -> T {
        let family = self.families.iter().find(|f| f.family == family).expect("both families");
        let node_ip = self.config.node_ip(family.family, family.tracker.node());
        look(&family.tracker.snapshot(node_ip), &self.config)
    }

    /// The observed state of IPVS mode in a family.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn held(&self, family: IpFamily) -> ObservedState {
        let Shared { servers, sets, links, .. } = &self.shared;
        let (mut servers, mut sets, mut links) = (servers.clone(), sets.clone(), links.clone());
        let (held, errors) = ObservedState::read(family, Some(&mut servers), Some(&mut sets), &mut links);
        assert!(errors.is_empty(), "{errors:?}");
        held
    }

    /// The excluded networks of virtual servers.
    #[must_use]
    pub fn excluded(&self) -> &[ipnet::IpNet] {
        &self.ipvs.exclude_cidrs
    }

    /// The expected state of IPVS mode in a family.
    ///
    /// # Panics
    /// If the scheduler is invalid.
    #[must_use]
    pub fn expected(&self, family: IpFamily) -> Expected {
        let addresses = Self::addresses(family);
        self.model(family, |snapshot, config| {
            ipvs::expected(family, config, &self.ipvs, snapshot, &addresses, true).expect("a scheduler")
        })
    }

    /// The node's addresses of a family, in the kernel's order.
    ///
    /// # Panics
    /// Never, because the constants are addresses.
    #[must_use]
    pub fn addresses(family: IpFamily) -> Vec<IpAddr> {
        let all = ADDRESSES.iter().map(|ip| ip.parse().expect("an address"));
        all.filter(|ip| IpFamily::of(ip) == family).collect()
    }

    /// A part of the kernel state in the format of its tool; `None` if it is not replayed.
    #[must_use]
    pub fn part(&self, part: Part) -> Option<String> {
        match part {
            Part::Iptables => Some(self.rules(IpFamily::V4)),
            Part::Ip6tables => Some(self.rules(IpFamily::V6)),
            Part::Ipvs => Some(self.shared.servers.to_string()),
            Part::Ipset => Some(self.shared.sets.to_string()),
            Part::Addr => {
                let held = self.shared.links.addresses_on(DeviceName::new("kube-ipvs0")).unwrap_or_default();
                Some(held.iter().map(|address| format!("{address}\n")).collect())
            }
            Part::Sysctl | Part::Http => None,
        }
    }

    /// The output of `nft list ruleset`.
    #[must_use]
    pub fn tables(&self) -> String {
        self.shared.nftables.text()
    }

    /// The output of `iptables-save` for a family, in the format of the recorded version.
    #[must_use]
    pub fn rules(&self, family: IpFamily) -> String {
        let of_family = self.families.iter().filter(|f| f.family == family);
        let tables = of_family.flat_map(|f| [Table::Mangle, Table::Filter, Table::Nat].map(|t| f.tables.save_text(t)));
        tables.collect::<String>().replace(" --nfacct-name ", " --nfacct-name  ")
    }
}

impl Shared {
    fn kernel(&self, tables: &FakeIptables, host: FakeHost) -> ipvs::Kernel {
        ipvs::Kernel {
            tool: Box::new(tables.clone()),
            table: Box::new(self.servers.clone()),
            sets: Box::new(self.sets.clone()),
            links: Box::new(self.links.clone()),
            host: Box::new(host),
        }
    }
}

/// The settings of IPVS mode. Timeouts and ARP have no effect here.
fn ipvs_config(fields: &Value) -> IpvsConfig {
    let excluded = fields.pointer("/ipvs/excludeCIDRs").and_then(Value::as_array).cloned().unwrap_or_default();
    let nets = excluded.iter().filter_map(Value::as_str).map(|net| net.parse().expect("a network"));
    IpvsConfig {
        scheduler: fields.pointer("/ipvs/scheduler").and_then(Value::as_str).unwrap_or_default().to_owned(),
        exclude_cidrs: nets.collect(),
        ..IpvsConfig::default()
    }
}

/// The configuration: the runner's with the fields that the cases set.
fn config(fields: &Value, mode: Mode) -> Config {
    let of_mode = if mode == Mode::Nftables { "nftables" } else { "iptables" };
    let text = |path: &str| fields.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let flag = |path: &str| fields.pointer(path).and_then(Value::as_bool);
    let mut config = objects::config();
    "node-a".clone_into(&mut config.node_name);
    config.local_detector = match &*text("/detectLocalMode") {
        "" | "ClusterCIDR" => {
            let cidrs = text("/clusterCIDR");
            let nets = cidrs.split(',').filter(|cidr| !cidr.is_empty());
            LocalDetector::ClusterCidr(nets.map(|net| net.trim().parse().expect("a network")).collect())
        }
        "NodeCIDR" => LocalDetector::NodeCidr,
        "BridgeInterface" => LocalDetector::BridgeInterface(text("/detectLocal/bridgeInterface")),
        "InterfaceNamePrefix" => LocalDetector::InterfaceNamePrefix(text("/detectLocal/interfaceNamePrefix")),
        other => panic!("detectLocalMode {other}"),
    };
    let addresses = fields.pointer("/nodePortAddresses").and_then(Value::as_array).cloned().unwrap_or_default();
    let addresses: Vec<&str> = addresses.iter().filter_map(Value::as_str).collect();
    config.node_port_addresses = match addresses[..] {
        ["primary"] => NodePortAddresses::primary(),
        [] if mode == Mode::Nftables => NodePortAddresses::primary(),
        _ => NodePortAddresses::within(addresses.iter().map(|net| net.parse().expect("a network")).collect()),
    };
    config.bind_address = text("/bindAddress").parse().ok();
    config.masquerade_all = flag(&format!("/{of_mode}/masqueradeAll")) == Some(true);
    config.localhost_node_ports = flag("/iptables/localhostNodePorts") != Some(false);
    config.hide_external_ips = flag("/featureGates/AllowServiceExternalIPs") == Some(false);
    if let Some(bit) = fields.pointer(&format!("/{of_mode}/masqueradeBit")).and_then(Value::as_u64) {
        config.masquerade_bit = u8::try_from(bit).expect("a bit");
    }
    if text("/iptables/syncPeriod") == "1h" {
        config.periods.sync = Duration::from_hours(1);
    }
    config
}
