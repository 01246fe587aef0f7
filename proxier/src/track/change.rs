//! Changes of a cluster in terms of the model, and their translation from API objects.

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
use crate::model::{Mode, NamespacedName, NodeInfo, ServicePort, ServicePortName, Slice};

/// The kinds of watched objects.
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

    /// The value of `kind` in objects.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// The `apiVersion` of the kind.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
        }
    }

    /// Whether its objects are namespaced.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice)
    }
}

/// The key of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name; the namespace is empty for cluster-scoped objects.
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
    /// Creates a key from metadata fields.
    pub(super) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = match namespace {
            _ if !kind.is_namespaced() => "",
            "" => "default",
            namespace => namespace,
        };
        Self { kind, name: NamespacedName::new(namespace, name) }
    }

    /// Checks that the name may appear in rules; an API server accepts no other.
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

    /// The error for a skipped object, with its name escaped.
    pub(super) fn error(&self, reason: String) -> ObjectError {
        ObjectError { object: self.to_string().escape_debug().to_string(), reason }
    }
}

/// A change in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The ports of a Service; empty if it is deleted or not served by this proxy.
    Service(NamespacedName, Vec<(ServicePortName, ServicePort)>),
    /// The content of an EndpointSlice; `None` if it is deleted or not used.
    Slice(NamespacedName, Option<SliceContent>),
    /// The own Node.
    Node(NodeInfo),
    /// The networks of a ServiceCIDR; empty if it is deleted or of the other family.
    ServiceCidr(NamespacedName, Vec<IpNet>),
    /// A list of all objects of a kind begins: objects missing until [`Change::Listed`] are deleted.
    Listing(Kind),
    /// The list is complete.
    Listed(Kind),
    /// The list is complete, but some objects could not be decoded, so no object is deleted.
    ListedInPart(Kind),
    /// A listed object that could not be decoded: its last state stays.
    Kept(ObjectKey),
}

/// The content of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceContent {
    /// The name of its Service.
    pub service: Arc<str>,
    /// Its ports and endpoints.
    pub slice: Slice,
    /// The trigger time of the change noted by its controller, for a metric.
    pub trigger: Option<SystemTime>,
}

/// Why an object was skipped.
#[derive(Debug, Error)]
#[error("{object} is skipped: {reason}")]
pub struct ObjectError {
    /// The object, as far as it is known.
    pub object: String,
    /// The field and the error.
    pub reason: String,
}

/// The translation of an object.
#[derive(Debug, Default)]
pub struct Translation {
    /// Changes by family.
    pub changes: Vec<(IpFamily, Change)>,
    /// Ignored invalid fields, with the object's name.
    pub problems: Vec<String>,
    /// For the own Node: whether load balancers should send traffic to it.
    pub node_eligible: Option<bool>,
}

/// Translates objects into changes.
#[derive(Debug)]
pub struct Translator {
    pub(super) node_name: String,
    pub(super) hide_external_ips: bool,
    pub(super) mode: Option<Mode>,
    pub(super) zones: ZoneHintInterner,
}

impl Translator {
    /// Creates a translator for a node. `hide_external_ips`: do not program external IPs.
    #[must_use]
    pub fn new(node_name: &str, hide_external_ips: bool) -> Self {
        Self { node_name: node_name.to_owned(), hide_external_ips, mode: None, zones: ZoneHintInterner::default() }
    }

    /// The same with the proxy mode, so that what this mode cannot do for an object is among the object's problems.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode: Some(mode), ..self }
    }

    /// Translates an object that exists.
    ///
    /// # Errors
    /// If a field has the wrong type or an invalid value: the object must then be skipped, and its last state stays.
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

    /// Translates a deletion. A deleted Node keeps its last state.
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
    /// The same change for both families.
    #[must_use]
    pub fn everywhere(change: &Change) -> Self {
        let changes = IpFamily::ALL.map(|family| (family, change.clone())).to_vec();
        Self { changes, ..Self::default() }
    }
}

/// The key of a JSON object, with empty fields if they are missing.
#[must_use]
pub fn key_of(kind: Kind, object: &serde_json::Value) -> ObjectKey {
    let field = |name| object.pointer(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    ObjectKey::new(kind, field("/metadata/namespace"), field("/metadata/name"))
}

/// Whether an object affects a Service: it is the Service, one of its slices, or of a global kind.
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

/// The API's limits for names: a rule's comment must fit into 255 characters.
pub(super) const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 253;

/// The first character that may not appear in rules.
pub(super) fn unprintable(text: &str) -> Option<char> {
    text.chars().find(|c| !c.is_ascii_graphic())
}

/// Parses an IP address as Kubernetes does: IPv4 octets may have leading zeros, read as decimal.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| {
        let mut octets = [0; 4];
        let mut parts = text.split('.');
        for octet in &mut octets {
            *octet = parts.next().filter(|part| is_number(part))?.parse().ok()?;
        }
        parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
    })
}

/// Parses a network as Kubernetes does, clearing host bits.
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (ip, len) = text.split_once('/')?;
    Some(IpNet::new(parse_ip(ip)?, Some(len).filter(|len| is_number(len))?.parse().ok()?).ok()?.trunc())
}

/// Whether a text has only digits: Go's decimal numbers have no sign.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Converts an IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) to IPv4, as Go does.
pub(super) fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}
