//! Whether this node can run nftables mode, and what its kernel has counted so far.

use std::collections::BTreeMap;

use netfilter::IpFamily;
use netfilter::kernel::{SystemNftables, kernel_release, packet_counters};
use proxier::nftables;

/// Why each family cannot run nftables mode; `None`: it can. Families that the kernel lacks are left out.
///
/// The kernel validates a table without creating it.
#[must_use]
pub fn nftables_problems() -> BTreeMap<IpFamily, Option<String>> {
    let too_old = nftables::check_release(&kernel_release()).err().map(|error| error.to_string());
    let problem = |family: IpFamily| {
        let missing = || nftables::check(&mut SystemNftables::default(), family).err().map(|error| error.to_string());
        (family, too_old.clone().or_else(missing))
    };
    IpFamily::ALL.into_iter().filter(|family| family.available().is_ok()).map(problem).collect()
}

/// The packets that nfacct counters of iptables mode have counted, by name; empty if they cannot be read.
#[must_use]
pub fn nfacct_packets() -> BTreeMap<String, u64> {
    packet_counters().unwrap_or_default()
}
