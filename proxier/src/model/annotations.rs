//! The annotations by which a Service asks for more than its API fields can say.
//!
//! All names are here. The project has no domain of its own; `.internal` is reserved for private use, so that no other
//! project can own the prefix.

/// Ends connections whose endpoint is gone: `true` or `false`.
pub const END_STALE_CONNECTIONS: &str = "kube-proxy-rust.internal/end-stale-connections";
/// UDP flows of terminating endpoints: `Default` or `PreserveDuringTermination`, as in KEP 5989's proposal.
pub const UDP_CONNECTION_HANDLING: &str = "service.kubernetes.io/udp-connection-handling";

/// The requests of a Service, parsed from its annotations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceExtensions {
    /// Delete the conntrack entries of endpoints that no EndpointSlice has any more.
    pub end_stale_connections: bool,
    /// Keep the UDP flows of terminating endpoints that do not serve.
    pub keep_terminating_udp_flows: bool,
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
            (END_STALE_CONNECTIONS, _) => return Err("true or false"),
            (UDP_CONNECTION_HANDLING, _) => return Err("Default or PreserveDuringTermination"),
            _ => {}
        }
        Ok(())
    }
}
