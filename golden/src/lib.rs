//! The conformance cases and the equipment of the tests, for tests only.

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
pub mod probe;
pub mod proxy;
pub mod replay;
pub mod sample;
pub mod seccomp;
pub mod strace;
pub mod tls;
pub mod tools;
pub mod upstream;
pub mod wire;
