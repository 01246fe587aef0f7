//! The model: what a node must know of a cluster, as plain data in Kubernetes terms.
//!
//! `track` decodes API objects into it, and modes render a [`Snapshot`] of it.

pub mod annotations;
pub mod config;
pub mod conntrack;
pub mod endpoint;
pub mod endpoint_hash;
pub mod health_check;
pub mod localhost_ports;
pub mod mode;
pub mod node;
mod packed;
pub mod service;
pub mod snapshot;
pub mod topology;

pub use annotations::ServiceExtensions;
pub use config::{Config, LocalDetector, NodePortAddresses, NodePortMatch};
pub use conntrack::ConntrackConfig;
pub use endpoint::{Endpoint, Endpoints, Slice, SliceEndpoint, SlicePort, sorted_addresses};
pub use endpoint_hash::EndpointHash;
pub use health_check::{HealthCheck, HealthChecks};
pub use mode::{IpvsConfig, Mode};
pub use node::NodeInfo;
pub use service::{Destination, NamespacedName, Protocol, ServicePort, ServicePortName};
pub use snapshot::{Scope, Snapshot};
pub use topology::CategorizedEndpoints;
