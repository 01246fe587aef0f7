//! What the choice of an endpoint is hashed from, for Services that ask for stable hashing.

use std::fmt;

/// What identifies a client when an endpoint is chosen by a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointHash {
    /// The client's address: all its connections go to one endpoint.
    Client,
    /// The client's address and port: each connection is hashed by itself.
    Flow,
}

impl fmt::Display for EndpointHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Flow => "flow",
        })
    }
}
