//! Endpoints: slices as they came, compact, and the merged list of one Service port.
//!
//! In: [`Slice`]s that `track` decoded. Out: for a Service port, its endpoints, deduplicated and in order.
//! Must not know: the API's shapes, Services' policies.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::packed::PackedSlice;
use super::service::{NamespacedName, Protocol, ServicePortName};

/// The zones that an endpoint's hints name. Few distinct values exist, so they are shared.
pub type ZoneHints = Arc<[Box<str>]>;

/// What an endpoint's `hints.forNodes` means on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NodeHint {
    /// No node hints.
    #[default]
    None,
    /// Hints that name this node, among others perhaps.
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

/// An EndpointSlice of one family, reduced to what rules depend on.
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
    /// Where packets go.
    pub address: SocketAddr,
    /// See [`SliceEndpoint`].
    pub state: SliceEndpoint,
}

impl Endpoint {
    /// Whether it may get new connections when nothing is ready: terminating, but serving still.
    #[must_use]
    pub fn serving_terminating(&self) -> bool {
        self.state.serving && self.state.terminating
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// All slices, by Service and slice name.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// Most Services have one slice or two: sorted lists take a tenth of the memory of maps.
    slices: HashMap<NamespacedName, Vec<(Arc<str>, PackedSlice)>>,
}

/// Where the slice of that name is in a sorted list, or belongs.
fn position(slices: &[(Arc<str>, PackedSlice)], name: &str) -> Result<usize, usize> {
    slices.binary_search_by(|(held, _)| (**held).cmp(name))
}

impl Endpoints {
    /// The slice of that name that belongs to a Service now.
    #[must_use]
    pub fn slice(&self, service: &NamespacedName, name: &str) -> Option<Slice> {
        let slices = self.slices.get(service)?;
        Some(slices[position(slices, name).ok()?].1.unpack())
    }

    /// Puts a slice in place of the one of that name.
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

    /// Forgets a slice, and with the last one the Service's entry.
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

    /// The same, of some Services.
    #[must_use]
    pub fn copy(&self, wanted: impl Fn(&NamespacedName) -> bool) -> Self {
        let slices = self.slices.iter().filter(|(service, _)| wanted(service));
        Self { slices: slices.map(|(service, slices)| (service.clone(), slices.clone())).collect() }
    }

    /// How many addresses of this node's are ready behind any port of a Service: what its health checks tell.
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

    /// The endpoints of a Service port, sorted by their printed form as kube-proxy sorts them, each `ip:port` once.
    ///
    /// Of duplicates a later one wins unless it is terminating: a pod that shows up twice while it moves between
    /// slices must not look as if it were going.
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

/// What an address prints, without an allocation: `[`, 39 characters, `]:65535` at most.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct AddressText {
    /// Zeros follow the text: they come before any character.
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
        // It fits: no endpoint has a scope.
        let _ = write!(writer, "{address}");
        writer.0
    }
}

fn sort_and_merge(mut found: Vec<Endpoint>) -> Vec<Endpoint> {
    // The sort is stable, so that duplicates stay in the order in which they came.
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
