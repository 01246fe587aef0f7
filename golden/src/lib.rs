//! Test equipment: conformance cases and the environments to run them in.
//!
//! - Cases: [`case`], [`canonical`], [`diff`], [`replay`], [`upstream`], and [`flows`], the promised outcomes of
//!   connections.
//! - API server: [`apiserver`], with [`sample`] objects, [`load`] and certificates ([`pki`], [`tls`]).
//! - Nodes: [`lab`] for recorded cases, [`node`] for a proxy of any configuration, [`cluster`] with pods and clients;
//!   all in [`netns`], with faults by [`seccomp`], [`netlink_faults`], [`strace`] and [`tools`].
//! - Prober: [`probe`] samples the outcomes of packets on a node; [`wire`] sends single packets, [`nftrace`] traces
//!   them.

pub mod apiserver;
pub mod canonical;
pub mod case;
pub mod cluster;
pub mod diff;
pub mod flavour;
pub mod flows;
pub mod lab;
pub mod load;
pub mod netlink_faults;
pub mod netns;
pub mod nftrace;
pub mod node;
pub mod pki;
pub mod pods;
pub mod probe;
pub mod proxy;
pub mod replay;
pub mod rulesets;
pub mod sample;
pub mod seccomp;
pub mod strace;
pub mod tls;
pub mod tools;
pub mod upstream;
pub mod wire;
