//! Conntrack sysctls on a real host, and the errors for values that cannot be set. Needs root.

use std::io::ErrorKind;
use std::time::Duration;

use netfilter::kernel::{Host, SystemHost};
use netfilter::testing::FakeHost;
use nix::sched::{CloneFlags, unshare};
use proxier::model::ConntrackConfig;
use proxier::tuning;

const MAX: &str = "net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";
const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

fn defaults() -> ConntrackConfig {
    ConntrackConfig {
        max_per_core: 32_768,
        min: 131_072,
        tcp_established_timeout: Duration::from_hours(24),
        tcp_close_wait_timeout: Duration::from_hours(1),
        tcp_be_liberal: false,
        udp_timeout: Duration::ZERO,
        udp_stream_timeout: Duration::ZERO,
    }
}

/// A host with a smaller table than [`defaults`] ask for.
fn small() -> FakeHost {
    let mut host = FakeHost::default();
    for (sysctl, value) in [(MAX, 65_536), (BUCKETS, 16_384)] {
        host.set_sysctl(sysctl, value).expect("it can be set");
    }
    host
}

fn apply(config: &ConntrackConfig, host: &mut dyn Host) -> Vec<String> {
    let not_set = tuning::apply(config, 2, host).expect("nothing impossible");
    not_set.iter().map(ToString::to_string).collect()
}

#[test]
fn a_host_gets_its_values_and_enough_buckets_for_them() {
    let mut host = small();
    assert_eq!(apply(&defaults(), &mut host), [""; 0]);
    for (sysctl, value) in [(MAX, 131_072), (BUCKETS, 32_768), (ESTABLISHED, 86_400), (CLOSE_WAIT, 3600)] {
        assert_eq!(host.sysctl(sysctl).expect("it was set"), value, "{sysctl}");
    }
    assert!(host.sysctl(LIBERAL).is_err(), "not configured");
}

#[test]
fn a_size_above_the_configured_one_is_never_lowered() {
    let mut host = FakeHost::default();
    for (sysctl, value) in [(MAX, 1_048_576), (BUCKETS, 262_144)] {
        host.set_sysctl(sysctl, value).expect("it can be set");
        // Not even the same value may be written: writing the hash size makes a new hash.
        host.refuse(sysctl, ErrorKind::InvalidInput);
    }
    assert_eq!(apply(&defaults(), &mut host), [""; 0]);
    assert_eq!((host.sysctl(MAX).ok(), host.sysctl(BUCKETS).ok()), (Some(1_048_576), Some(262_144)));
}

#[test]
fn a_size_that_cannot_be_read_is_not_written() {
    let mut host = small();
    host.hide(BUCKETS);
    let said = apply(&defaults(), &mut host);
    assert!(said.len() == 1 && said[0].contains(BUCKETS), "{said:?}");
    assert_eq!(host.sysctl(MAX).ok(), Some(131_072));
    host.hide(MAX);
    assert_eq!(
        apply(&ConntrackConfig { min: 262_144, ..defaults() }, &mut host).len(),
        1,
        "the hash follows the table"
    );
    for sysctl in [MAX, BUCKETS] {
        host.show(sysctl);
    }
    assert_eq!((host.sysctl(MAX).ok(), host.sysctl(BUCKETS).ok()), (Some(131_072), Some(16_384)));
}

#[test]
fn unwritable_sysctl_is_named_and_not_fatal() {
    for reason in [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied, ErrorKind::NotFound] {
        let mut host = FakeHost::default();
        host.set_sysctl(ESTABLISHED, 86_400).expect("it can be set");
        host.set_sysctl(MAX, 65_536).expect("it can be set");
        for sysctl in [MAX, ESTABLISHED, CLOSE_WAIT] {
            host.refuse(sysctl, reason);
        }
        let said = apply(&defaults(), &mut host);
        // What has its value already needs no writing.
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("maxPerCore") && said[0].contains("to 131072, it stays 65536"), "{said:?}");
        assert!(said[1].contains("tcpCloseWaitTimeout") && said[1].contains("unknown"), "{said:?}");
        assert!(host.sysctl(BUCKETS).is_err(), "buckets follow the size");
    }
}

#[test]
fn connection_tracking_that_is_not_loaded_yet_is_loaded() {
    let mut host = FakeHost::default();
    for sysctl in [MAX, BUCKETS, ESTABLISHED, CLOSE_WAIT] {
        host.refuse(sysctl, ErrorKind::NotFound);
    }
    assert_eq!(apply(&defaults(), &mut host).len(), 3, "there is none to load");
    host.make_conntrack_a_module();
    assert_eq!(apply(&defaults(), &mut host), [""; 0]);
    assert_eq!(host.sysctl(MAX).expect("it was set"), 131_072);
}

#[test]
fn a_value_that_no_kernel_takes_is_an_error_with_its_field() {
    let mut host = FakeHost::default();
    host.refuse(ESTABLISHED, ErrorKind::InvalidInput);
    let error = tuning::apply(&defaults(), 2, &mut host).expect_err("impossible").to_string();
    assert!(error.contains("conntrack.tcpEstablishedTimeout") && error.contains("86400"), "{error}");
}

#[test]
fn in_a_network_namespace_timeouts_are_set_and_the_size_stays_the_hosts() {
    // A thread of its own, which the namespace goes with.
    let said = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run the tests as root");
        let mut host = SystemHost;
        let size = host.sysctl(MAX).expect("the kernel has conntrack");
        let settings = ConntrackConfig {
            max_per_core: u32::try_from(size + 1).expect("a size"),
            min: u32::try_from(size + 1).expect("a size"),
            tcp_close_wait_timeout: Duration::from_millis(59_001),
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(31),
            udp_stream_timeout: Duration::from_secs(121),
            ..defaults()
        };
        let said = apply(&settings, &mut host);
        assert_eq!(host.sysctl(MAX).expect("it is there"), size);
        for (sysctl, value) in [
            (CLOSE_WAIT, 60),
            (LIBERAL, 1),
            ("net/netfilter/nf_conntrack_udp_timeout", 31),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", 121),
        ] {
            assert_eq!(host.sysctl(sysctl).expect("it is there"), value, "{sysctl}");
        }
        // Once it has what it should have, nothing is written: so it may be read-only.
        assert_eq!(apply(&ConntrackConfig { max_per_core: 0, ..settings }, &mut host), [""; 0]);
        said
    });
    let said = said.join().expect("no panic");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("nf_conntrack_max to") && said[0].contains("host's own"), "{said:?}");
}
