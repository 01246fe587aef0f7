//! The input of one sync: a borrowed view of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::endpoint::Endpoints;
use super::node::NodeInfo;
use super::service::{ServicePort, ServicePortName};

/// The model of one family at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// The Service ports in name order, which is the order of rendering.
    pub ports: &'a BTreeMap<ServicePortName, ServicePort>,
    /// The endpoints of all Services, including unknown ones.
    pub endpoints: &'a Endpoints,
    /// This node.
    pub node: &'a NodeInfo,
    /// This node's address in this family: its own, `--bind-address`, or loopback.
    pub node_ip: IpAddr,
    /// The known ServiceCIDR networks of this family, sorted.
    pub service_cidrs: &'a [IpNet],
}

/// The extent of a sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything, compared with the kernel.
    Full,
    /// Only these Service ports: changed, new or gone since the last successful sync.
    Changed(BTreeSet<ServicePortName>),
}
