//! Stateful fakes of the kernel and of the iptables programs, for tests and benches.
//!
//! Each implements a trait of [`crate::kernel`], stores what is written, and can be made to fail. Contract tests
//! compare them with a real kernel.

mod address_watch;
mod client_probe;
mod conntrack;
mod host;
mod ipset;
mod iptables;
mod ipvs;
mod link;
mod nftables;
mod recorder;

pub use address_watch::FakeAddressWatch;
pub use client_probe::FakeClientProbe;
pub use conntrack::FakeConntrack;
pub use host::FakeHost;
pub use ipset::FakeIpSets;
pub use iptables::FakeIptables;
pub use ipvs::FakeIpvs;
pub use link::FakeLinks;
pub use nftables::FakeNftables;
pub use recorder::{Recorder, RecordingIptables};
