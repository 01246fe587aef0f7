//! A process without a file descriptor left: each reader of the kernel says so, and none says that there is nothing.
//!
//! The limit is the whole process's, so this is the only test here. It needs root.

#[path = "suite/common/namespace.rs"]
mod namespace;

use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::conntrack::UDP;
use netfilter::iptables::Table;
use netfilter::kernel::{
    AddressWatch, ConntrackTable, Flavour, Host, NftTables, SystemAddressWatch, SystemConntrack, SystemHost,
    SystemIpSets, SystemLinks, SystemNftables, existing_tables, has_chain, has_table, table_size,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxier::leftovers;

use self::namespace::{in_namespace, run};

#[test]
fn without_descriptors_facts_are_unknown_not_absent() {
    in_namespace(|| {
        // There is something of each kind.
        run("iptables-legacy -t nat -N KUBE-MARK-MASQ");
        run("iptables-nft -t nat -N KUBE-MARK-MASQ");
        let mut watch = SystemAddressWatch::new(IpFamily::V4, None, Duration::from_secs(30));
        let limits = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        let now = Instant::now();

        setrlimit(Resource::RLIMIT_NOFILE, 0, limits.1).expect("it may be lowered");
        let found: Vec<(&str, bool)> = vec![
            ("addresses", SystemHost.addresses(IpFamily::V4).is_err()),
            ("sysctl", SystemHost.sysctl("net/ipv4/ip_forward").is_err()),
            ("legacy tables", existing_tables(IpFamily::V4, Flavour::Legacy).is_err()),
            ("nf_tables tables", existing_tables(IpFamily::V4, Flavour::Nft).is_err()),
            ("a table", has_table(IpFamily::V4, "nat").is_err()),
            ("a chain", has_chain(IpFamily::V4, "nat", "KUBE-MARK-MASQ").is_err()),
            ("the generation", SystemNftables::default().generation().is_err()),
            ("the size of a table", table_size(IpFamily::V4, Table::Nat).is_err()),
            ("conntrack", SystemConntrack.delete(IpFamily::V4, UDP, &mut |_| false).is_err()),
            ("links", SystemLinks::open().is_err()),
            ("sets", SystemIpSets::open().is_err()),
            (
                "leftovers",
                leftovers::remove(IpFamily::V4, None, false, &netfilter::kernel::WriterPriority::default()).is_err(),
            ),
            ("no news of addresses", !watch.changed(now)),
            ("nor before the time to try again", !watch.changed(now + Duration::from_secs(29))),
        ];
        setrlimit(Resource::RLIMIT_NOFILE, limits.0, limits.1).expect("it may be raised");

        let wrong: Vec<&str> = found.iter().filter(|(_, unknown)| !unknown).map(|(what, _)| *what).collect();
        assert!(wrong.is_empty(), "these say that there is nothing: {wrong:?}");
        assert!(watch.changed(now + Duration::from_secs(30)), "a new subscription, after which all has to be read");
        assert!(!SystemHost.addresses(IpFamily::V4).expect("they can be read again").is_empty());
    });
}
