//! Chain names of iptables mode, the same as kube-proxy's.

use std::fmt::Write;
use std::net::SocketAddr;

use data_encoding::BASE32;
use netfilter::iptables::Chain;
use sha2::{Digest, Sha256};

use crate::model::ServicePortName;
pub use crate::xtables::{FORWARD, MARK_MASQ, POSTROUTING, PROXY_FIREWALL, SERVICES};

/// Refuses traffic to external addresses without endpoints.
pub const EXTERNAL_SERVICES: Chain = Chain::new("KUBE-EXTERNAL-SERVICES");
/// Dispatches by node port; in filter, accepts health checks.
pub const NODE_PORTS: Chain = Chain::new("KUBE-NODEPORTS");
/// The kubelet's chain, which has the same rule as ours.
pub const KUBELET_FIREWALL: Chain = Chain::new("KUBE-FIREWALL");
/// An empty chain; its absence means that the tables were flushed.
pub const CANARY: Chain = Chain::new("KUBE-PROXY-CANARY");

/// Replaces the shared chains while rules are tested. Nothing jumps there.
pub const PROBE: Chain = Chain::new("KUBE-PROXY-PROBE");

/// The length of the hash in the names of chains of Service ports and endpoints.
pub const HASH_LEN: usize = 16;
/// Chains jump only to chains with later prefixes.
const PREFIXES: [&str; 5] = ["KUBE-FW-", "KUBE-EXT-", "KUBE-SVL-", "KUBE-SVC-", "KUBE-SEP-"];

/// The chains of one Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortChains {
    /// `KUBE-SVC-…`: the endpoints of policy `Cluster`.
    pub cluster: Chain,
    /// `KUBE-SVL-…`: the endpoints of policy `Local`.
    pub local: Chain,
    /// `KUBE-FW-…`: the source ranges.
    pub firewall: Chain,
    /// `KUBE-EXT-…`: traffic to anything but the cluster IP.
    pub external: Chain,
}

/// Creates the chain names of one Service port.
#[derive(Debug)]
pub struct Namer {
    seed: Sha256,
    text: String,
}

impl Namer {
    /// Creates a namer: names hash the port's name and protocol, and for endpoints the address.
    #[must_use]
    pub fn new(port: &ServicePortName) -> Self {
        let mut text = String::with_capacity(96);
        let _ = write!(text, "{port}");
        text.push_str(port.protocol.name());
        Self { seed: Sha256::new_with_prefix(text.as_bytes()), text }
    }

    /// The chains of the port itself.
    #[must_use]
    pub fn port(&self) -> PortChains {
        let hash = encode(self.seed.clone());
        PortChains {
            cluster: Chain::hashed("KUBE-SVC-", hash),
            local: Chain::hashed("KUBE-SVL-", hash),
            firewall: Chain::hashed("KUBE-FW-", hash),
            external: Chain::hashed("KUBE-EXT-", hash),
        }
    }

    /// `KUBE-SEP-…`, the chain of one of its endpoints.
    pub fn endpoint(&mut self, endpoint: SocketAddr) -> Chain {
        self.text.clear();
        let _ = write!(self.text, "{endpoint}");
        let mut hash = self.seed.clone();
        hash.update(self.text.as_bytes());
        Chain::hashed("KUBE-SEP-", encode(hash))
    }
}

/// Whether a chain has a Service port's prefix: deleted when no Service port uses it.
#[must_use]
pub fn is_of_service(chain: &Chain) -> bool {
    PREFIXES.iter().any(|prefix| chain.as_str().starts_with(prefix))
}

/// Sorts chains so that they can be deleted in parts: none before a chain that jumps to it.
pub fn sort_for_deletion(chains: &mut [Chain]) {
    let rank = |chain: &Chain| PREFIXES.iter().position(|prefix| chain.as_str().starts_with(prefix));
    chains.sort_unstable_by_key(|chain| (rank(chain), *chain));
}

/// The hash in a chain name, which a Service port's chains share; an endpoint's chain has its own.
#[must_use]
pub fn hash_of(chain: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| chain.strip_prefix(prefix)).filter(|hash| hash.len() == HASH_LEN)
}

/// Whether a chain of that name belongs to a Service port or one of its endpoints.
#[must_use]
pub fn is_of_service_port(chain: &str) -> bool {
    hash_of(chain).is_some()
}

fn encode(hash: Sha256) -> [u8; HASH_LEN] {
    let digest = hash.finalize();
    let mut encoded = [0; HASH_LEN];
    // 10 bytes are 16 characters of base32.
    BASE32.encode_mut(&digest[..HASH_LEN * 5 / 8], &mut encoded);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NamespacedName, Protocol};

    #[test]
    fn chain_names_equal_those_of_kube_proxy() {
        let port = ServicePortName {
            service: NamespacedName::new("default", "with-local"),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        let mut namer = Namer::new(&port);
        assert_eq!(namer.port().cluster.as_str(), "KUBE-SVC-3FNP6KDT3RDA4WFJ");
        assert_eq!(namer.port().external.as_str(), "KUBE-EXT-3FNP6KDT3RDA4WFJ");
        let endpoint = namer.endpoint("10.244.3.5:8080".parse().expect("an address"));
        assert_eq!(endpoint.as_str(), "KUBE-SEP-4RP3G6V4YDQN7TJN");
        assert!(is_of_service(&endpoint) && !is_of_service(&SERVICES));
    }
}
