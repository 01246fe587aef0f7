//! What tests and benches put in the place of the cluster and the kernel.
//!
//! In: names and numbers. Out: API objects, and a kernel that is a value: it can be looked at and told to refuse.
//! Must not know: what the code under test does with either.

mod address_watch;
mod conntrack;
mod host;
mod ipset;
mod iptables;
mod ipvs;
mod link;
mod nftables;
pub mod objects;
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
