//! The annotations by which a Service asks for more than its API fields can say.
//!
//! All names are here. The project has no domain of its own; `.internal` is reserved for private use, so that no other
//! project can own the prefix.

use super::endpoint_hash::EndpointHash;

/// Ends connections whose endpoint is gone: `true` or `false`.
pub const END_STALE_CONNECTIONS: &str = "kube-proxy-rust.internal/end-stale-connections";
/// UDP flows of terminating endpoints: `Default` or `PreserveDuringTermination`, as in KEP 5989's proposal.
pub const UDP_CONNECTION_HANDLING: &str = "service.kubernetes.io/udp-connection-handling";

/// Chooses endpoints by a hash that is the same on all nodes: of the `client` address, or of each `flow`.
pub const ENDPOINT_HASH: &str = "kube-proxy-rust.internal/endpoint-hash";
/// Cilium's choice of an algorithm for a Service: `maglev` hashes each flow, `random` is the default here.
///
/// Calico's `lb.projectcalico.org/external-traffic-strategy` is not understood: it leaves connections of pods and to node ports to
/// chance, and replaces `externalTrafficPolicy`.
pub const CILIUM_ALGORITHM: &str = "service.cilium.io/lb-algorithm";

/// The requests of a Service, parsed from its annotations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceExtensions {
    /// Delete the conntrack entries of endpoints that no EndpointSlice has any more.
    pub end_stale_connections: bool,
    /// Keep the UDP flows of terminating endpoints that do not serve.
    pub keep_terminating_udp_flows: bool,
    /// Choose endpoints by a hash instead of at random.
    pub endpoint_hash: Option<EndpointHash>,
}

impl ServiceExtensions {
    /// Sets what an annotation asks for. An empty value is like no annotation.
    ///
    /// # Errors
    /// The accepted values, if the value is another one; the extension then stays off.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match (name, value) {
            (_, "") | (END_STALE_CONNECTIONS, "false") | (UDP_CONNECTION_HANDLING, "Default") => {}
            (END_STALE_CONNECTIONS, "true") => self.end_stale_connections = true,
            (UDP_CONNECTION_HANDLING, "PreserveDuringTermination") => self.keep_terminating_udp_flows = true,
            (ENDPOINT_HASH, "client") => self.endpoint_hash = Some(EndpointHash::Client),
            (ENDPOINT_HASH, "flow") | (CILIUM_ALGORITHM, "maglev") => self.endpoint_hash = Some(EndpointHash::Flow),
            (CILIUM_ALGORITHM, "random") => {}
            (ENDPOINT_HASH, _) => return Err("client or flow"),
            (CILIUM_ALGORITHM, _) => return Err("maglev or random"),
            (END_STALE_CONNECTIONS, _) => return Err("true or false"),
            (UDP_CONNECTION_HANDLING, _) => return Err("Default or PreserveDuringTermination"),
            _ => {}
        }
        Ok(())
    }
}
