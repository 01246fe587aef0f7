//! A fake kernel with everything that IPVS mode needs.

use std::net::SocketAddr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::ipset::SetName;
use netfilter::iptables::Table;
use netfilter::ipvs::{ServerKey, TCP};
use netfilter::kernel::{
    AddressOperation, DeviceName, Host, IpSets, IptablesTool, IpvsError, IpvsTable, Links, Operation, SetOperation,
};
use netfilter::testing::{FakeHost, FakeIpSets, FakeIptables, FakeIpvs, FakeLinks};
use proxier::backend::Backend;
use proxier::ipvs::{self, Ipvs};
use proxier::model::{Config, IpvsConfig};
use proxier::testing::objects::config;

use crate::common::run::Kernel;

/// The device of the mode.
pub const DEVICE: DeviceName = DeviceName::new("kube-ipvs0");

/// The node's address.
const NODE: &str = "192.168.50.2";

/// One fake kernel; clones are the same one.
#[derive(Clone, Debug)]
pub struct Fake {
    pub tables: FakeIptables,
    pub servers: FakeIpvs,
    pub sets: FakeIpSets,
    pub links: FakeLinks,
    pub host: FakeHost,
}

impl Default for Fake {
    fn default() -> Self {
        let host = FakeHost::default();
        host.set_addresses([NODE, "127.0.0.1"].map(|ip| ip.parse().expect("an address")));
        let (tables, servers) = (FakeIptables::default(), FakeIpvs::default());
        Self { tables, servers, sets: FakeIpSets::default(), links: FakeLinks::default(), host }
    }
}

impl Fake {
    /// A mode that works on it.
    pub fn with(&self, config: Config, ipvs: IpvsConfig, tool: Box<dyn IptablesTool>) -> Box<dyn Backend> {
        let kernel = ipvs::Kernel {
            tool,
            table: Box::new(self.servers.clone()),
            sets: Box::new(self.sets.clone()),
            links: Box::new(self.links.clone()),
            host: Box::new(self.host.clone()),
        };
        Box::new(Ipvs::new(IpFamily::V4, config, ipvs, kernel).expect("a scheduler"))
    }

    /// The virtual servers that it has.
    pub fn keys(&self) -> Vec<ServerKey> {
        let mut keys = Vec::new();
        let mut servers = self.servers.clone();
        servers.virtual_servers(IpFamily::V4, &mut |server| keys.push(server.key)).expect("they can be listed");
        keys
    }

    /// The real servers of the virtual server at a TCP address, each with its weight.
    pub fn reals(&self, address: &str) -> Vec<(String, u32)> {
        let server = self.servers.server(tcp(address)).map(|(_, reals)| reals).unwrap_or_default();
        server.into_iter().map(|real| (real.address.to_string(), real.weight)).collect()
    }

    /// The addresses of the device.
    pub fn bound(&self) -> Vec<String> {
        self.links.addresses_on(DEVICE).unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// The entries of a set.
    pub fn entries(&self, set: &str) -> Vec<String> {
        let held = self.sets.entries_in(SetName::parse(set).expect("a name")).expect("it is there");
        held.iter().map(ToString::to_string).collect()
    }

    fn damage_server(&self, nth: usize) -> bool {
        let keys = self.keys();
        let Some(&key) = keys.get(nth % keys.len().max(1)) else { return false };
        let reals = self.servers.server(key).map(|(_, reals)| reals).unwrap_or_default();
        let operation = match reals.get(nth / 7 % reals.len().max(1)) {
            Some(real) if nth.is_multiple_of(2) => Operation::DeleteReal(key, real.address),
            _ => Operation::DeleteVirtual(key),
        };
        self.servers.clone().apply(&[operation], &mut |_, error| panic!("{error}")).expect("the fake works");
        true
    }

    fn damage_set(&self, nth: usize) -> bool {
        let mut names = Vec::new();
        let mut sets = self.sets.clone();
        sets.sets(&mut |set| names.push(set.name)).expect("the fake works");
        let filled = names.into_iter().filter_map(|name| Some((name, *self.sets.entries_in(name)?.first()?)));
        let filled: Vec<_> = filled.collect();
        let Some(&(name, entry)) = filled.get(nth % filled.len().max(1)) else { return false };
        let operation = SetOperation::Delete(name, entry);
        sets.apply(&[operation], &mut |_, error| panic!("{error}")).expect("the fake works");
        true
    }

    fn damage_address(&self, nth: usize) -> bool {
        let held = self.links.addresses_on(DEVICE).unwrap_or_default();
        let operation = match held.get(nth % held.len().max(1)) {
            Some(&net) if nth.is_multiple_of(2) => AddressOperation::Delete(net),
            _ => AddressOperation::Add(IpNet::from(std::net::IpAddr::from([198, 18, 0, 1]))),
        };
        self.links.clone().apply(DEVICE, &[operation], &mut |_, error| panic!("{error}")).expect("the fake works");
        true
    }

    fn damage_chain(&self, nth: usize) -> bool {
        let of = |table| self.tables.chains(table).into_iter().map(move |(chain, rules)| (table, chain, rules));
        let ours = [Table::Nat, Table::Filter].into_iter().flat_map(of);
        let ours: Vec<_> = ours.filter(|(_, chain, rules)| chain.starts_with("KUBE-") && !rules.is_empty()).collect();
        let Some((table, chain, _)) = ours.get(nth % ours.len().max(1)) else { return false };
        self.tables.apply(&format!("*{}\n:{chain} - [0:0]\nCOMMIT\n", table.name())).expect("a chain can be emptied");
        true
    }
}

/// The virtual server at a TCP address.
pub fn tcp(address: &str) -> ServerKey {
    ServerKey { address: address.parse().expect("an address"), protocol: TCP }
}

impl Kernel for Fake {
    fn tool(&self) -> Box<dyn IptablesTool> {
        Box::new(self.tables.clone())
    }

    fn host(&self) -> Box<dyn Host> {
        Box::new(self.host.clone())
    }

    fn mode(&self, tool: Box<dyn IptablesTool>) -> Box<dyn Backend> {
        self.with(config(), IpvsConfig::default(), tool)
    }

    fn fresh(&self) -> Self {
        Self::default()
    }

    fn damage(&self, nth: usize) -> bool {
        match nth % 4 {
            0 => self.damage_server(nth / 4),
            1 => self.damage_set(nth / 4),
            2 => self.damage_address(nth / 4),
            _ => self.damage_chain(nth / 4),
        }
    }

    /// What iptables mode would refuse a rule for is refused as a real server here; everything, if all is to fail.
    fn refuse(&self, text: Option<&str>, _: bool) {
        let pod = text.and_then(|text| text.strip_prefix("--to-destination "));
        let address = pod.map(|pod| format!("{pod}8080").parse::<SocketAddr>().expect("an address"));
        self.servers.refuse(address);
        self.servers.fail((text == Some("")).then_some(|| IpvsError::NotPermitted));
    }

    fn text(&self) -> String {
        format!("{}{}{}{}", self.servers, self.sets, self.links, self.tables)
    }

    fn is_atomic(&self) -> bool {
        false
    }
}
