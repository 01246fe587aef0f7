//! Endpoints: compact slices, and the merged endpoints of a Service port.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::packed::PackedSlice;
use super::service::{NamespacedName, Protocol, ServicePortName};

/// The zones of an endpoint's hints. Few distinct values exist, so they are shared.
pub type ZoneHints = Arc<[Box<str>]>;

/// What an endpoint's `hints.forNodes` means on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NodeHint {
    /// No node hints.
    #[default]
    None,
    /// Hints that include this node.
    Here,
    /// Hints that name other nodes only.
    Elsewhere,
}

/// One endpoint of a [`Slice`], without a port: a slice's ports apply to all its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of the endpoint's addresses; the API keeps the others for no defined use.
    pub ip: IpAddr,
    /// Condition `ready`, true where absent.
    pub ready: bool,
    /// Condition `serving`, true where absent.
    pub serving: bool,
    /// Condition `terminating`, false where absent.
    pub terminating: bool,
    /// Whether `nodeName` is this node.
    pub local: bool,
    /// `hints.forNodes`, seen from this node.
    pub node_hint: NodeHint,
    /// `hints.forZones`.
    pub zone_hints: Option<ZoneHints>,
}

/// A port of a [`Slice`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// The name that a Service port of the same name refers to.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// The fields of an EndpointSlice that rules depend on, for one family.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Slice {
    /// The ports that are set.
    pub ports: Box<[SlicePort]>,
    /// The endpoints that have an address.
    pub endpoints: Box<[SliceEndpoint]>,
}

/// An endpoint of one Service port, printed `10.0.0.1:80` or `[fd00::1]:80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address and port.
    pub address: SocketAddr,
    /// Its conditions and hints.
    pub state: SliceEndpoint,
}

impl Endpoint {
    /// Whether it serves while terminating, and may get new connections if nothing is ready.
    #[must_use]
    pub fn serving_terminating(&self) -> bool {
        self.state.serving && self.state.terminating
    }
}

/// The addresses of endpoints, sorted for binary searches.
#[must_use]
pub fn sorted_addresses<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Box<[SocketAddr]> {
    let mut addresses: Vec<_> = endpoints.map(|endpoint| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.into()
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// All slices, by Service and slice name.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// Sorted lists: most Services have one slice or two, and maps take ten times the memory.
    slices: HashMap<NamespacedName, Vec<(Arc<str>, PackedSlice)>>,
}

/// The position of a slice in a sorted list, or where to insert it.
fn position(slices: &[(Arc<str>, PackedSlice)], name: &str) -> Result<usize, usize> {
    slices.binary_search_by(|(known, _)| (**known).cmp(name))
}

impl Endpoints {
    /// A slice of a Service.
    #[must_use]
    pub fn slice(&self, service: &NamespacedName, name: &str) -> Option<Slice> {
        let slices = self.slices.get(service)?;
        Some(slices[position(slices, name).ok()?].1.unpack())
    }

    /// Inserts or replaces a slice.
    pub fn insert(&mut self, service: NamespacedName, name: Arc<str>, slice: Slice) {
        let slice = PackedSlice::of(slice);
        let slices = self.slices.entry(service).or_default();
        match position(slices, &name) {
            Ok(at) => slices[at].1 = slice,
            Err(at) => {
                slices.reserve_exact(1);
                slices.insert(at, (name, slice));
            }
        }
    }

    /// Removes a slice, and the Service's entry with the last one.
    pub fn remove(&mut self, service: &NamespacedName, name: &str) {
        if let Some(slices) = self.slices.get_mut(service) {
            if let Ok(at) = position(slices, name) {
                slices.remove(at);
            }
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
    }

    /// Copies the slices of the Services that `wanted` accepts.
    #[must_use]
    pub fn copy(&self, wanted: impl Fn(&NamespacedName) -> bool) -> Self {
        let slices = self.slices.iter().filter(|(service, _)| wanted(service));
        Self { slices: slices.map(|(service, slices)| (service.clone(), slices.clone())).collect() }
    }

    /// The number of ready local endpoint addresses behind any port of a Service, for its health checks.
    #[must_use]
    pub fn local_ready(&self, service: &NamespacedName) -> usize {
        let Some(slices) = self.slices.get(service) else { return 0 };
        let ports: HashSet<_> =
            slices.iter().flat_map(|(_, slice)| slice.ports()).map(|p| (&p.name, p.protocol)).collect();
        let names = ports.into_iter().map(|(name, protocol)| ServicePortName {
            service: service.clone(),
            port: name.clone(),
            protocol,
        });
        let endpoints = names.flat_map(|name| self.of(&name));
        endpoints.filter(|e| e.state.local && e.state.ready).map(|e| e.state.ip).collect::<HashSet<_>>().len()
    }

    /// The endpoints of a Service port, sorted by printed form like in kube-proxy, without duplicates.
    ///
    /// A later duplicate wins unless it is terminating: a pod that moves between slices must not appear as terminating.
    #[must_use]
    pub fn of(&self, port: &ServicePortName) -> Vec<Endpoint> {
        let Some(slices) = self.slices.get(&port.service) else { return Vec::new() };
        let mut found: Vec<Endpoint> = Vec::new();
        for (_, slice) in slices {
            for slice_port in slice.ports().iter().filter(|p| p.protocol == port.protocol && p.name == port.port) {
                found.extend(slice.endpoints().map(|endpoint| Endpoint {
                    address: SocketAddr::new(endpoint.ip, slice_port.port),
                    state: endpoint,
                }));
            }
        }
        sort_and_merge(found)
    }
}

/// The printed form of an address, inline: at most `[`, 39 characters, `]:65535`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct AddressText {
    /// Padded with zeros, which sort before any character.
    text: [u8; 48],
}

impl AddressText {
    fn of(address: &SocketAddr) -> Self {
        struct Writer(AddressText, usize);
        impl Write for Writer {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let Self(AddressText { text: out }, end) = self;
                out.get_mut(*end..*end + text.len()).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
                *end += text.len();
                Ok(())
            }
        }
        let mut writer = Writer(Self { text: [0; 48] }, 0);
        // It fits: endpoint addresses have no scope.
        let _ = write!(writer, "{address}");
        writer.0
    }
}

fn sort_and_merge(mut found: Vec<Endpoint>) -> Vec<Endpoint> {
    // A stable sort keeps duplicates in order.
    found.sort_by_cached_key(|endpoint| AddressText::of(&endpoint.address));
    let mut merged: Vec<Endpoint> = Vec::with_capacity(found.len());
    for endpoint in found {
        match merged.last_mut() {
            Some(last) if last.address == endpoint.address => {
                if !endpoint.state.terminating {
                    *last = endpoint;
                }
            }
            _ => merged.push(endpoint),
        }
    }
    merged
}
