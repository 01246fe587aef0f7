//! What one sync sees.
//!
//! In: the maps that a `Proxier` owns, borrowed. Out: a view for `Backend::sync`. Must not know: any mode.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::endpoint::Endpoints;
use super::node::NodeInfo;
use super::service::{ServicePort, ServicePortName};

/// All that rules are made of, at one moment, in one family.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// The Service ports, in name order: every rendering goes through them in this order.
    pub ports: &'a BTreeMap<ServicePortName, ServicePort>,
    /// The endpoints of all Services, known ones or not.
    pub endpoints: &'a Endpoints,
    /// This node.
    pub node: &'a NodeInfo,
    /// This node's address in this family: its own, `--bind-address`, or loopback.
    pub node_ip: IpAddr,
    /// The networks of this family that cluster IPs are taken from, as far as they are known, in order.
    pub service_cidrs: &'a [IpNet],
}

/// How much of the kernel's state a sync has to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything, compared with what the kernel holds.
    Full,
    /// Only these Service ports: changed, new or gone since the last successful sync.
    Changed(BTreeSet<ServicePortName>),
}
