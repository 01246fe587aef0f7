//! Our own Node: waits for what rules need of it, and ends the process where it contradicts the configuration.
//!
//! In: what the source sees of the Node. Out: the same to the families, or the reason why the proxy must end.
//! Must not know: rules. Addresses and zone may change at any time: the rules follow. Its networks may not.

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

/// How long the Node may be unknown or without addresses.
const ADDRESS_WAIT: Duration = Duration::from_secs(30);
/// How long, after that, it may be without networks if they are needed.
const NETWORK_WAIT: Duration = Duration::from_secs(300);

/// Why the proxy cannot work on this node.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    /// The family of the node's first address does not work here.
    #[error(
        "no support for primary IP family {0:?}: this host cannot program it; \
         give the Node an address of the other family first, or set bindAddress to one"
    )]
    Unsupported(&'static str),
    /// The configuration is for the other family.
    #[error("{0}")]
    Incorrect(String),
    /// There is no Node after all that time.
    #[error("timeout waiting for node {0:?} to exist: register the Node, or name another with --hostname-override")]
    NoNode(String),
    /// Nobody gave it a network.
    #[error(
        "timeout waiting for PodCIDR allocation on node {0:?}: detectLocalMode NodeCIDR needs spec.podCIDRs; \
         let the controller manager allocate them, or choose another detectLocalMode"
    )]
    NoNetwork(String),
    /// It has other networks now.
    #[error("the Node's spec.podCIDRs changed from {old:?} to {new:?}: ending, to start anew with them")]
    NetworkChanged {
        /// Those that the proxy works with.
        old: Vec<IpNet>,
        /// Those that the Node has.
        new: Vec<IpNet>,
    },
}

/// What is known of the Node.
#[derive(Debug)]
struct NodeTracker {
    settings: ValidatedConfig,
    families: Vec<IpFamily>,
    known: Option<NodeInfo>,
    /// For what is still waited; `None`: for nothing.
    wait: Option<Wait>,
    /// Why the Node could not be read, as was said last.
    trouble: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Wait {
    /// For an answer of the API server, however long it takes.
    List,
    Address(Instant),
    Network(Instant),
}

/// Takes news of the Node on to the families, as long as the proxy can work with them. `families`: those that work on
/// this host.
pub async fn follow(
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
            Ok(Some(NodeUpdate::Applied(node))) => own.seen(&node).map(|()| Some(Change::Node(node))),
            Ok(Some(NodeUpdate::ListProgress(change))) => {
                if matches!((&change, own.wait), (Change::Listed(_) | Change::ListedInPart(_), Some(Wait::List))) {
                    own.wait = Some(Wait::Address(Instant::now() + ADDRESS_WAIT));
                    let name = &own.settings.proxier.node_name;
                    info!(
                        "waiting up to {ADDRESS_WAIT:?} for the Node {name:?} and its addresses; rules come after that"
                    );
                }
                Ok(Some(change))
            }
            Ok(Some(NodeUpdate::Deleted)) => {
                info!("the Node {:?} was deleted; what was known of it holds", own.settings.proxier.node_name);
                Ok(None)
            }
            Ok(Some(NodeUpdate::Failed(kind, said))) => {
                if kind == Kind::Node {
                    own.unread(said);
                }
                Ok(None)
            }
            // The source has ended, and with it all.
            Ok(None) => std::future::pending().await,
            Err(_) => own.waited(Instant::now()).map(|()| None),
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

    fn seen(&mut self, node: &NodeInfo) -> Result<(), NodeError> {
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
        self.check()
    }

    /// What is missing has not come in time.
    fn waited(&mut self, now: Instant) -> Result<(), NodeError> {
        let name = &self.settings.proxier.node_name;
        match self.wait.take() {
            Some(Wait::Address(_)) => {
                match self.known {
                    None => error!("there is no Node {name:?}: going on without; check --hostname-override"),
                    Some(_) => error!("the Node {name:?} has no addresses: going on without"),
                }
                if self.needs_network() && self.known.as_ref().is_none_or(|node| node.pod_cidrs.is_empty()) {
                    self.wait_for_network(now);
                    return Ok(());
                }
                self.check()
            }
            Some(Wait::Network(_)) if self.known.is_none() => Err(NodeError::NoNode(name.clone())),
            Some(Wait::Network(_)) => Err(NodeError::NoNetwork(name.clone())),
            Some(Wait::List) | None => Ok(()),
        }
    }

    /// What keeps us from the Node is said once for each reason.
    fn unread(&mut self, said: String) {
        if !matches!(self.wait, Some(Wait::List)) || self.trouble.as_ref() == Some(&said) {
            return;
        }
        let name = &self.settings.proxier.node_name;
        // The server comes first, then a refusal's status; other texts may have the digits in an address.
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
                "no rules yet: detectLocalMode NodeCIDR needs the spec.podCIDRs of the Node {name:?}, and it cannot be \
                 read: {said}{right}"
            );
        } else {
            error!("the Node {name:?} cannot be read, rules wait for it up to {ADDRESS_WAIT:?}: {said}{right}");
        }
        self.trouble = Some(said);
    }

    fn wait_for_network(&mut self, now: Instant) {
        info!("detectLocalMode NodeCIDR: waiting for spec.podCIDRs of the Node {:?}", self.settings.proxier.node_name);
        self.wait = Some(Wait::Network(now + NETWORK_WAIT));
    }

    fn changed(&self, old: &NodeInfo, new: &NodeInfo) -> Result<(), NodeError> {
        if self.needs_network() && old.pod_cidrs != new.pod_cidrs {
            return Err(NodeError::NetworkChanged { old: old.pod_cidrs.clone(), new: new.pod_cidrs.clone() });
        }
        if old.addresses != new.addresses {
            info!("the Node's addresses changed from {:?} to {:?}; the rules follow", old.addresses, new.addresses);
        }
        Ok(())
    }

    /// The node's first address: `bindAddress` before the Node's own.
    fn primary(&self) -> IpAddr {
        let first = self.known.as_ref().and_then(|node| node.addresses.first().copied());
        self.settings.proxier.bind_address.or(first).unwrap_or_else(|| IpFamily::V4.localhost())
    }

    /// Whether Node, configuration and host fit together.
    fn check(&self) -> Result<(), NodeError> {
        let (ip, family) = (self.primary(), IpFamily::of(&self.primary()));
        info!("Node {:?}: primary family {family}, address {ip}", self.settings.proxier.node_name);
        if ip.is_loopback() {
            info!("the node's address is a loopback one; if the Node has no better one, give --bind-address");
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
