//! The faults. A new one is a row in one of these files.

mod api;
mod kernel;
mod process;
mod tools;

use std::time::Duration;

use golden::flavour::Flavour;

use super::rig::Rig;

/// A fault.
pub struct Fault {
    /// A short name, to choose it by.
    pub name: &'static str,
    /// What is injected, for the table.
    pub injected: &'static str,
    /// Whether it is one of the sample.
    pub in_sample: bool,
    /// Whether connections may be lost: what carries them is what is broken.
    pub may_lose: bool,
    /// How long the recovery may take, from the end of the injection.
    pub within: Duration,
    /// Whether there is such a fault in nftables mode, which runs no tools and has no iptables rules.
    pub in_nftables: bool,
    /// The flavour of iptables that the node uses.
    pub flavour: Flavour,
    /// Injects the fault, and takes it back where it does not end by itself.
    pub inject: fn(&mut Rig),
}

/// A fault of the sample that may lose nothing and is recovered from in 20 seconds.
pub const PLAIN: Fault = Fault {
    name: "",
    injected: "",
    in_sample: true,
    may_lose: false,
    within: Duration::from_secs(20),
    in_nftables: true,
    flavour: Flavour::Nft,
    inject: |_| {},
};

/// All faults.
pub fn all() -> Vec<Fault> {
    [api::faults(), process::faults(), tools::faults(), kernel::faults()].into_iter().flatten().collect()
}

/// Lets a fault last.
pub fn last(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}
