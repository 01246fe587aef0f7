//! IPsec policies as values: which packets they are for, and what they do.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Where a policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XfrmDirection {
    /// To packets for this node.
    In,
    /// To packets that leave, its own and forwarded ones.
    Out,
    /// To packets that are forwarded, as they came in.
    Forward,
}

/// What a policy does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XfrmAction {
    /// It passes as it is.
    Allow,
    /// It is dropped.
    Block,
    /// It has to be transformed by IPsec, or to have been.
    Transform,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XfrmPolicy {
    /// Where it applies.
    pub direction: XfrmDirection,
    /// What it does.
    pub action: XfrmAction,
    /// The lowest number is looked at first.
    pub priority: u32,
    /// The packets' sources.
    pub source: IpNet,
    /// The packets' destinations.
    pub destination: IpNet,
    /// Their protocol's number; 0: any.
    pub protocol: u8,
    /// Their source port, and the bits of it that count.
    pub source_port: (u16, u16),
    /// Their destination port, and the bits of it that count.
    pub destination_port: (u16, u16),
    /// Their mark: value and mask.
    pub mark: (u32, u32),
    /// Whether it is for one interface only: which packets meet it is then not decided.
    pub of_interface: bool,
}

impl XfrmPolicy {
    /// Whether the policy is for a packet.
    #[must_use]
    pub fn is_for(&self, source: SocketAddr, destination: SocketAddr, protocol: u8, mark: u32) -> bool {
        let port = |(port, mask): (u16, u16), of: u16| (port ^ of) & mask == 0;
        self.source.contains(&source.ip())
            && self.destination.contains(&destination.ip())
            && (self.protocol == 0 || self.protocol == protocol)
            && port(self.source_port, source.port())
            && port(self.destination_port, destination.port())
            && mark & self.mark.1 == self.mark.0
    }

    /// The policy as `ip xfrm policy` begins to print it.
    #[must_use]
    pub fn text(&self) -> String {
        let direction = match self.direction {
            XfrmDirection::In => "in",
            XfrmDirection::Out => "out",
            XfrmDirection::Forward => "fwd",
        };
        let action = if self.action == XfrmAction::Block { " action block" } else { "" };
        format!("src {} dst {} dir {direction}{action} priority {}", self.source, self.destination, self.priority)
    }
}

/// An address of a family from the first bytes of a field of 16.
pub(crate) fn address(bytes: &[u8; 16], is_v4: bool) -> IpAddr {
    match is_v4 {
        true => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        false => IpAddr::from(*bytes),
    }
}
