//! The faults. A new one is a row in one of these files.

mod api;
mod calls;
mod kernel;
mod machine;
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
    /// When it is injected.
    pub when: When,
    /// Whether connections may be lost: what carries them is what is broken.
    pub may_lose: bool,
    /// How long the recovery may take, from the end of the injection.
    pub within: Duration,
    /// Whether there is such a fault in nftables mode, which runs no tools and has no iptables rules.
    pub in_nftables: bool,
    /// Whether it changes the whole machine: it is injected in a kernel of its own.
    pub needs_own_kernel: bool,
    /// The pause between two connections from one place to another.
    pub pause: Duration,
    /// The flavour of iptables that the node uses.
    pub flavour: Flavour,
    /// Injects the fault, and takes it back where it does not end by itself.
    pub inject: fn(&mut Rig),
}

/// When a fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With the sample and with all.
    InSample,
    /// With all.
    WithAll,
    /// Only by its name: it takes long.
    ByName,
}

/// A fault of the sample that may lose nothing and is recovered from in 20 seconds.
pub const PLAIN: Fault = Fault {
    name: "",
    injected: "",
    when: When::InSample,
    may_lose: false,
    within: Duration::from_secs(20),
    in_nftables: true,
    needs_own_kernel: false,
    pause: Duration::from_millis(20),
    flavour: Flavour::Nft,
    inject: |_| {},
};

/// All faults.
pub fn all() -> Vec<Fault> {
    let kinds =
        [api::faults(), process::faults(), calls::faults(), tools::faults(), kernel::faults(), machine::faults()];
    kinds.into_iter().flatten().collect()
}

/// Lets a fault last.
pub fn last(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}
