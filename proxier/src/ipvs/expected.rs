//! The expected kernel state of IPVS mode, for comparison by inspection commands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::ipset::Entry;
use netfilter::iptables::{Rule, Table};
use netfilter::ipvs::{RealServer, ServerKey, VirtualServer};

use super::graceful;
use super::names::{DEVICE, IPVS_OUT_FILTER, SetId};
use super::plan;
use super::rules::{self, CHAINS, ChainRenderer};
use super::settings::IpvsSettings;
use super::state::IpvsState;
use super::{prepare, render};
use crate::backend::SyncError;
use crate::model::{Config, IpvsConfig, ServicePortName, Snapshot};

/// An expected virtual server.
#[derive(Clone, Debug)]
pub struct ExpectedServer {
    /// The virtual server itself.
    pub server: VirtualServer,
    /// The addresses of its real servers, in order.
    pub reals: Arc<[SocketAddr]>,
    /// The Service port that owns it.
    pub owner: ServicePortName,
}

impl ExpectedServer {
    /// The expected real server at an address, if any.
    #[must_use]
    pub fn real(&self, address: SocketAddr) -> Option<RealServer> {
        self.reals.binary_search(&address).is_ok().then(|| plan::real(address, 1))
    }
}

/// All expected state of one family.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The virtual servers.
    pub servers: BTreeMap<ServerKey, ExpectedServer>,
    /// The entries of each set, with the Service port that needs each.
    pub sets: BTreeMap<&'static str, BTreeMap<Entry, Option<ServicePortName>>>,
    /// The addresses of the device, with the Service port that needs each.
    pub addresses: BTreeMap<IpAddr, ServicePortName>,
    /// The rules as `iptables-restore` input.
    pub rules: String,
}

impl Expected {
    /// The device that the addresses are bound to.
    #[must_use]
    pub fn device() -> String {
        DEVICE.to_string()
    }

    /// The name of the set of all bound addresses.
    #[must_use]
    pub fn set_of_addresses(family: IpFamily) -> &'static str {
        SetId::BoundIps.name(family)
    }

    /// Whether real servers of that protocol are terminated gracefully.
    #[must_use]
    pub fn may_drain(key: ServerKey) -> bool {
        graceful::is_graceful(key.protocol)
    }
}

/// Renders the expected state. `addresses` are the node's, without those of the device.
///
/// # Errors
/// If the configured scheduler name is invalid.
pub fn expected(
    family: IpFamily,
    config: &Config,
    ipvs: &IpvsConfig,
    snapshot: &Snapshot<'_>,
    addresses: &[IpAddr],
    random_fully: bool,
) -> Result<Expected, SyncError> {
    let settings = IpvsSettings::of(family, config, prepare::scheduler(ipvs)?, random_fully, snapshot, addresses);
    let mut state = IpvsState::default();
    let (mut addresses, mut owners) = (BTreeMap::new(), BTreeMap::new());
    for name in snapshot.ports.keys() {
        let Some(desired) = render::render(snapshot, name, &settings) else { continue };
        for server in desired.servers.iter().filter(|server| server.bound) {
            addresses.entry(server.key.address.ip()).or_insert_with(|| name.clone());
        }
        for entry in &desired.entries {
            owners.entry(*entry).or_insert_with(|| name.clone());
        }
        state.set_desired(name, Some(desired), false);
    }
    let mut servers = BTreeMap::new();
    for key in state.all_keys() {
        if let (Some(spec), Some(owner)) = (state.desired_server(key, &settings), state.claimants(key).first()) {
            let server = ExpectedServer { server: spec.server, reals: spec.reals, owner: owner.clone() };
            servers.insert(key, server);
        }
    }
    let sets = SetId::existing(config.service_metrics).map(|id| {
        let desired: BTreeSet<Entry> = state.entries[id as usize].referenced();
        let owner = |entry: &Entry| match entry {
            Entry::Ip(ip) => addresses.get(ip).cloned(),
            _ => owners.get(&(id, *entry)).cloned(),
        };
        (id.name(family), desired.into_iter().map(|entry| (entry, owner(&entry))).collect())
    });
    let sets = sets.collect();
    let rules = text(&settings, &state);
    Ok(Expected { servers, sets, addresses, rules })
}

fn text(settings: &IpvsSettings, state: &IpvsState) -> String {
    let rules = ChainRenderer { settings, used: |id| state.is_used(id), usable: |_| true };
    let mut out = String::new();
    for table in [Table::Nat, Table::Filter] {
        let _ = writeln!(out, "*{}", table.name());
        let chains = || CHAINS.into_iter().filter(|(of, _)| *of == table);
        for (_, chain) in chains() {
            let _ = writeln!(out, ":{chain} - [0:0]");
        }
        // Jumps are inserted at the head, one after the other.
        for jump in rules::jumps().into_iter().rev().filter(|jump| jump.table == table) {
            let _ = writeln!(out, "-A {}{}", jump.from, jump.rule);
        }
        for (_, chain) in chains() {
            let of_chain: Vec<Rule> = if chain == IPVS_OUT_FILTER {
                state.barred.referenced().into_iter().map(rules::bar).collect()
            } else {
                rules.of(table, chain)
            };
            for rule in of_chain {
                let _ = writeln!(out, "-A {chain}{rule}");
            }
        }
        out += "COMMIT\n";
    }
    out
}
