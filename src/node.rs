//! Tracks this node's Node object and exits the process where it contradicts the configuration.
//!
//! Rules wait for the Node's addresses, and for its pod CIDRs if local detection needs them. Addresses and zone may
//! change
//! at any time and are passed to the families; pod CIDRs may not.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netfilter::IpFamily;
use proxier::model::{LocalDetector, NodeInfo};
use proxier::track::{Change, Kind};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use crate::config::ValidatedConfig;
use crate::config::consistency::{self, INCONSISTENT, Inconsistencies, NodeFacts};
use crate::source::{FamilySenders, NodeUpdate};

/// How long rules wait for the Node and its addresses.
const ADDRESS_WAIT: Duration = Duration::from_secs(30);
/// How much longer rules wait for pod CIDRs if they are needed.
const NETWORK_WAIT: Duration = Duration::from_secs(300);

/// Why the proxy cannot run on this node.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    /// This host cannot program the family of the node's first address.
    #[error(
        "no support for primary IP family {0:?}: this host cannot program it; \
         give the Node an address of the other family first, or set bindAddress to one"
    )]
    Unsupported(&'static str),
    /// The configuration is for the other family.
    #[error("{0}")]
    Incorrect(String),
    /// No Node exists after both waits.
    #[error("timeout waiting for node {0:?} to exist: register the Node, or name another with --hostname-override")]
    NoNode(String),
    /// The Node has no pod CIDRs after both waits.
    #[error(
        "timeout waiting for PodCIDR allocation on node {0:?}: detectLocalMode NodeCIDR needs spec.podCIDRs; \
         let the controller manager allocate them, or choose another detectLocalMode"
    )]
    NoNetwork(String),
    /// The Node's pod CIDRs changed.
    #[error("the Node's spec.podCIDRs changed from {old:?} to {new:?}: exiting to be restarted with them")]
    NetworkChanged {
        /// The pod CIDRs that the rules use.
        old: Vec<IpNet>,
        /// The pod CIDRs that the Node has.
        new: Vec<IpNet>,
    },
}

/// The Node's last known state and what is still awaited.
#[derive(Debug)]
struct NodeTracker {
    settings: ValidatedConfig,
    families: Vec<IpFamily>,
    known: Option<NodeInfo>,
    /// What is awaited; `None` once the rules need nothing more.
    wait: Option<Wait>,
    /// The last read failure, so that each is logged once.
    trouble: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Wait {
    /// For the first list of the API server, without a deadline.
    List,
    Address(Instant),
    Network(Instant),
}

/// Forwards Node updates to the families until one contradicts the configuration. `families`: the families that this
/// host can program.
pub async fn track(
    settings: ValidatedConfig,
    families: FamilySenders,
    mut news: UnboundedReceiver<NodeUpdate>,
) -> NodeError {
    let mut own =
        NodeTracker { settings, families: families.known(), known: None, wait: Some(Wait::List), trouble: None };
    loop {
        let next = match own.wait {
            Some(Wait::Address(until) | Wait::Network(until)) => timeout_at(until, news.recv()).await,
            Some(Wait::List) | None => Ok(news.recv().await),
        };
        let outcome = match next {
            Ok(Some(NodeUpdate::Applied(node))) => own.apply(&node).map(|()| Some(Change::Node(node))),
            Ok(Some(NodeUpdate::ListProgress(change))) => {
                if matches!((&change, own.wait), (Change::Listed(_) | Change::ListedInPart(_), Some(Wait::List))) {
                    own.wait = Some(Wait::Address(Instant::now() + ADDRESS_WAIT));
                    let name = &own.settings.proxier.node_name;
                    info!(
                        "Waiting up to {ADDRESS_WAIT:?} for Node {name:?} and its addresses before programming rules"
                    );
                }
                Ok(Some(change))
            }
            Ok(Some(NodeUpdate::Deleted)) => {
                info!("Node {:?} was deleted, keeping its last known state", own.settings.proxier.node_name);
                Ok(None)
            }
            Ok(Some(NodeUpdate::Failed(kind, said))) => {
                if kind == Kind::Node {
                    own.log_failure(said);
                }
                Ok(None)
            }
            // The source has ended, and with it the process.
            Ok(None) => std::future::pending().await,
            Err(_) => own.on_timeout(Instant::now()).map(|()| None),
        };
        match outcome {
            Ok(change) => change.iter().for_each(|change| families.send_all(change)),
            Err(error) => return error,
        }
    }
}

impl NodeTracker {
    fn needs_network(&self) -> bool {
        self.settings.proxier.local_detector == LocalDetector::NodeCidr
    }

    fn apply(&mut self, node: &NodeInfo) -> Result<(), NodeError> {
        let old = self.known.replace(node.clone()).unwrap_or_default();
        let Some(wait) = self.wait else { return self.changed(&old, node) };
        let networks_come = matches!(wait, Wait::Network(_));
        if node.addresses.is_empty() && !networks_come {
            return Ok(());
        }
        if self.needs_network() && node.pod_cidrs.is_empty() {
            if !networks_come {
                self.wait_for_network(Instant::now());
            }
            return Ok(());
        }
        self.wait = None;
        self.validate()
    }

    /// Handles the end of a wait.
    fn on_timeout(&mut self, now: Instant) -> Result<(), NodeError> {
        let name = &self.settings.proxier.node_name;
        match self.wait.take() {
            Some(Wait::Address(_)) => {
                match self.known {
                    None => error!(
                        "No Node {name:?} after {ADDRESS_WAIT:?}, continuing without it: check --hostname-override"
                    ),
                    Some(_) => error!("Node {name:?} has no addresses after {ADDRESS_WAIT:?}, continuing without them"),
                }
                if self.needs_network() && self.known.as_ref().is_none_or(|node| node.pod_cidrs.is_empty()) {
                    self.wait_for_network(now);
                    return Ok(());
                }
                self.validate()
            }
            Some(Wait::Network(_)) if self.known.is_none() => Err(NodeError::NoNode(name.clone())),
            Some(Wait::Network(_)) => Err(NodeError::NoNetwork(name.clone())),
            Some(Wait::List) | None => Ok(()),
        }
    }

    /// Logs a failure to read the Node, each one once.
    fn log_failure(&mut self, said: String) {
        if !matches!(self.wait, Some(Wait::List)) || self.trouble.as_ref() == Some(&said) {
            return;
        }
        let name = &self.settings.proxier.node_name;
        // The server's URL comes first, then the HTTP status; elsewhere these digits may be part of an address.
        let status = said.split_once(": ").and_then(|(_, refusal)| refusal.get(..4)).unwrap_or_default();
        let right = match status {
            "401 " => {
                "; the API server does not accept the credentials: check the token, certificate or plugin of the \
                 kubeconfig's user"
            }
            "403 " => "; the service account needs to list and watch nodes (ClusterRole system:node-proxier)",
            _ => "",
        };
        if self.needs_network() {
            error!(
                "Failed to read Node {name:?}, no rules yet: detectLocalMode NodeCIDR needs its spec.podCIDRs: \
                 {said}{right}"
            );
        } else {
            error!("Failed to read Node {name:?}, rules wait up to {ADDRESS_WAIT:?} for it: {said}{right}");
        }
        self.trouble = Some(said);
    }

    fn wait_for_network(&mut self, now: Instant) {
        info!(
            "Waiting up to {NETWORK_WAIT:?} for spec.podCIDRs of Node {:?}, needed by detectLocalMode NodeCIDR",
            self.settings.proxier.node_name
        );
        self.wait = Some(Wait::Network(now + NETWORK_WAIT));
    }

    fn changed(&self, old: &NodeInfo, new: &NodeInfo) -> Result<(), NodeError> {
        if self.needs_network() && old.pod_cidrs != new.pod_cidrs {
            return Err(NodeError::NetworkChanged { old: old.pod_cidrs.clone(), new: new.pod_cidrs.clone() });
        }
        if old.addresses != new.addresses {
            info!("Node addresses changed from {:?} to {:?}, updating rules", old.addresses, new.addresses);
        }
        Ok(())
    }

    /// The node's first address: `bindAddress`, or else the Node's own.
    fn primary(&self) -> IpAddr {
        let first = self.known.as_ref().and_then(|node| node.addresses.first().copied());
        self.settings.proxier.bind_address.or(first).unwrap_or_else(|| IpFamily::V4.localhost())
    }

    /// Validates the configuration against the Node and the families that this host has.
    fn validate(&self) -> Result<(), NodeError> {
        let (ip, family) = (self.primary(), IpFamily::of(&self.primary()));
        info!("Node {:?}: primary family {family}, address {ip}", self.settings.proxier.node_name);
        if ip.is_loopback() {
            info!("Node address {ip} is a loopback address; set --bind-address if the Node has no other");
        }
        if !self.families.contains(&family) {
            return Err(NodeError::Unsupported(family.name()));
        }
        let pod_cidrs = self.known.as_ref().map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        let known = NodeFacts { primary: family, dual_stack: self.families.len() > 1, pod_cidrs };
        let Inconsistencies { warnings, fatal } = consistency::check_node(&self.settings, &known);
        warnings.iter().for_each(|doubt| warn!(err = doubt, "{INCONSISTENT}"));
        fatal.map_or(Ok(()), |problem| Err(NodeError::Incorrect(problem)))
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
