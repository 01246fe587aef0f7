//! What can happen to a cluster, in the words of the model.
//!
//! In: objects, events of lists and watches. Out: [`Change`]s by family. Must not know: what the tracker holds, how
//! objects are encoded.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use netfilter::IpFamily;
use thiserror::Error;

use super::endpointslice::SERVICE_NAME;
use super::object::{Content, Object};
use super::zones::ZoneHintInterner;
use crate::model::{NamespacedName, NodeInfo, ServicePort, ServicePortName, Slice};

/// The kinds of objects that rules are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` `Service`
    Service,
    /// `discovery.k8s.io/v1` `EndpointSlice`
    EndpointSlice,
    /// `v1` `Node`, our own
    Node,
    /// `networking.k8s.io/v1` `ServiceCIDR`
    ServiceCidr,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr];

    /// The kind as objects name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// The `apiVersion` that belongs to it.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
        }
    }

    /// Whether its objects are in namespaces.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice)
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name; what is in no namespace has an empty one.
    pub name: NamespacedName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.namespace.is_empty() {
            write!(f, "{} {}", self.kind.name(), self.name.name)
        } else {
            write!(f, "{} {}", self.kind.name(), self.name)
        }
    }
}

impl ObjectKey {
    /// The key of an object by the fields of its metadata.
    pub(super) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = match namespace {
            _ if !kind.is_namespaced() => "",
            "" => "default",
            namespace => namespace,
        };
        Self { kind, name: NamespacedName::new(namespace, name) }
    }

    /// Checks that the name may stand in rules: an API server accepts no other.
    fn check(&self) -> Result<(), ObjectError> {
        let name_limit = if self.kind == Kind::Service { LABEL_MAX } else { NAME_MAX };
        let limits =
            [("metadata.name", &self.name.name, name_limit), ("metadata.namespace", &self.name.namespace, LABEL_MAX)];
        for (field, value, limit) in limits {
            let reason = if let Some(bad) = unprintable(value) {
                format!("{field}: {value:?} has the character {bad:?} in it")
            } else if value.len() > limit {
                format!("{field}: it is longer than {limit} characters")
            } else {
                continue;
            };
            return Err(self.error(reason));
        }
        Ok(())
    }

    /// Why the object is skipped. Its name may be what is wrong with it, so it is shown harmless.
    pub(super) fn error(&self, reason: String) -> ObjectError {
        ObjectError { object: self.to_string().escape_debug().to_string(), reason }
    }
}

/// Something that happened, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service has these ports now; without any, it is gone or not for us.
    Service(NamespacedName, Vec<(ServicePortName, ServicePort)>),
    /// An EndpointSlice says this now; `None`: it is gone or not for us.
    Slice(NamespacedName, Option<SliceContent>),
    /// The own Node.
    Node(NodeInfo),
    /// A ServiceCIDR has these networks now; without any, it is gone or not of this family.
    ServiceCidr(NamespacedName, Vec<IpNet>),
    /// A list of all objects of a kind begins: those that do not come before [`Change::Listed`] are gone.
    Listing(Kind),
    /// The list is complete.
    Listed(Kind),
    /// The list is complete, but not all of its objects could be decoded: those that did not come may be among them, so
    /// none is gone.
    ListedInPart(Kind),
    /// An object that could not be understood has come in a list: what is held of it stays.
    Kept(ObjectKey),
}

/// What an EndpointSlice says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceContent {
    /// The name of its Service.
    pub service: Arc<str>,
    /// What it holds.
    pub slice: Slice,
    /// When that which made it change happened, as its controller noted: for one metric only.
    pub trigger: Option<SystemTime>,
}

/// Why an object was skipped.
#[derive(Debug, Error)]
#[error("{object} is skipped: {reason}")]
pub struct ObjectError {
    /// Which one, as far as that can be told.
    pub object: String,
    /// The field and what is wrong with it.
    pub reason: String,
}

/// What became of an object.
#[derive(Debug, Default)]
pub struct Translation {
    /// What to tell the families' trackers.
    pub changes: Vec<(IpFamily, Change)>,
    /// Fields that were left out, with the object's name.
    pub problems: Vec<String>,
    /// For the own Node: whether load balancers should send traffic to it.
    pub node_eligible: Option<bool>,
}

/// Turns objects into changes.
#[derive(Debug)]
pub struct Translator {
    pub(super) node_name: String,
    pub(super) hide_external_ips: bool,
    pub(super) zones: ZoneHintInterner,
}

impl Translator {
    /// For the node of that name. `hide_external_ips`: they are not to be programmed.
    #[must_use]
    pub fn new(node_name: &str, hide_external_ips: bool) -> Self {
        Self { node_name: node_name.to_owned(), hide_external_ips, zones: ZoneHintInterner::default() }
    }

    /// Takes an object that exists now.
    ///
    /// # Errors
    /// If a field has the wrong type or a value that no such object can have: then the object as a whole is to be
    /// skipped, and what was known of it before stays.
    pub fn applied(&mut self, object: Object) -> Result<Translation, ObjectError> {
        let Object { key, content, .. } = object;
        let content = content?;
        key.check()?;
        match content {
            Content::Service(service) => self.service(&key, &service),
            Content::EndpointSlice(slice) => self.slice(key, &slice),
            Content::Node(node) => Ok(self.node(&key, &node)),
            Content::ServiceCidr(object) => Ok(Self::service_cidr(&key, &object)),
        }
    }

    /// Takes an object that is gone. A Node that goes leaves its facts: they hold until it is back.
    #[must_use]
    pub fn deleted(key: &ObjectKey) -> Translation {
        let change = match key.kind {
            Kind::Service => Change::Service(key.name.clone(), Vec::new()),
            Kind::EndpointSlice => Change::Slice(key.name.clone(), None),
            Kind::ServiceCidr => Change::ServiceCidr(key.name.clone(), Vec::new()),
            Kind::Node => return Translation::default(),
        };
        Translation::everywhere(&change)
    }
}

impl Translation {
    /// The same for both families.
    #[must_use]
    pub fn everywhere(change: &Change) -> Self {
        let changes = IpFamily::ALL.map(|family| (family, change.clone())).to_vec();
        Self { changes, ..Self::default() }
    }
}

/// The name of an object, as far as it has one.
#[must_use]
pub fn key_of(kind: Kind, object: &serde_json::Value) -> ObjectKey {
    let field = |name| object.pointer(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    ObjectKey::new(kind, field("/metadata/namespace"), field("/metadata/name"))
}

/// Whether what that Service comes to depends on an object: it is the Service, a slice of it, or of a kind that all
/// Services depend on.
#[must_use]
pub fn concerns(kind: Kind, object: &serde_json::Value, service: &NamespacedName) -> bool {
    let label = || object.pointer("/metadata/labels")?.get(SERVICE_NAME)?.as_str();
    match kind {
        Kind::Service => key_of(kind, object).name == *service,
        Kind::EndpointSlice => {
            key_of(kind, object).name.namespace == service.namespace && label() == Some(&*service.name)
        }
        Kind::Node | Kind::ServiceCidr => true,
    }
}

/// The API's limits for names: all of a rule's comment has to fit into 255 characters.
pub(super) const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 253;

/// The first character that must not get into a rule's text.
pub(super) fn unprintable(text: &str) -> Option<char> {
    text.chars().find(|c| !c.is_ascii_graphic())
}

/// An IP address as the API takes it: IPv4 with leading zeros too, read as decimal.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| {
        let mut octets = [0; 4];
        let mut parts = text.split('.');
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| part.len() <= 10 && part.bytes().all(|b| b.is_ascii_digit()))?
                .parse()
                .ok()?;
        }
        parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
    })
}

/// A network as the API takes it, host bits cleared.
pub(super) fn parse_net(text: &str) -> Option<IpNet> {
    let (ip, len) = text.split_once('/')?;
    Some(IpNet::new(parse_ip(ip)?, len.parse().ok()?).ok()?.trunc())
}

/// Whether an address is an IPv4 one written as IPv6 (`::ffff:10.0.0.1`): Go treats the two as one.
pub(super) fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}
