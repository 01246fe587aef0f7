//! Stateful fakes of the kernel and of the iptables programs, for tests and benches of what is built on this crate.
//!
//! Each implements the trait of its part of [`crate::kernel`], keeps what is written as a value, and can be made to
//! refuse. Contract tests hold them against a real kernel.

mod address_watch;
mod conntrack;
mod host;
mod ipset;
mod iptables;
mod ipvs;
mod link;
mod nftables;
mod recorder;

pub use address_watch::FakeAddressWatch;
pub use conntrack::FakeConntrack;
pub use host::FakeHost;
pub use ipset::FakeIpSets;
pub use iptables::FakeIptables;
pub use ipvs::FakeIpvs;
pub use link::FakeLinks;
pub use nftables::FakeNftables;
pub use recorder::{Recorder, RecordingIptables};
