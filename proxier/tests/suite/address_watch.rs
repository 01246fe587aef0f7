//! The kernel's news about addresses, in a network namespace per test. It needs root.

use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{AddressOperation, AddressWatch, DeviceName, Links, SystemAddressWatch, SystemLinks};

use crate::common::namespace::{in_namespace, run};

const DEVICE: DeviceName = DeviceName::new("kube-ipvs0");
/// A bridge will do: not every kernel has dummy devices.
const MAKE: &str = "ip link add kube-ipvs0 type bridge";
const SOON: Duration = Duration::from_secs(5);

fn watch(family: IpFamily, ignored: Option<DeviceName>) -> SystemAddressWatch {
    let mut watch = SystemAddressWatch::new(family, ignored, Duration::from_secs(30));
    assert!(watch.changed(Instant::now()), "what happened before the subscription is unknown");
    assert!(!watch.changed(Instant::now()));
    watch
}

#[test]
fn addresses_that_come_and_go_are_reported_once_and_in_their_family() {
    in_namespace(|| {
        let mut watches = IpFamily::ALL.map(|family| watch(family, None));
        let mut changed = || [0, 1].map(|at: usize| watches[at].changed(Instant::now()));
        for (command, expected) in [
            ("ip addr add 192.0.2.99/32 dev lo", [true, false]),
            ("ip addr add fd00::99/128 dev lo nodad", [false, true]),
            ("ip addr del 192.0.2.99/32 dev lo", [true, false]),
            ("ip link add br0 type bridge", [false, false]),
            ("ip addr add 192.0.2.1/24 dev br0", [true, false]),
            // Its address goes with it.
            ("ip link del br0", [true, false]),
        ] {
            run(command);
            // The kernel announces an IPv6 address from a work queue, after the command has ended.
            let (begun, mut seen) = (Instant::now(), changed());
            while seen != expected && begun.elapsed() < SOON {
                std::thread::sleep(Duration::from_millis(5));
                let more = changed();
                seen = [seen[0] || more[0], seen[1] || more[1]];
            }
            assert_eq!(seen, expected, "{command}");
            assert_eq!(changed(), [false, false], "{command}, asked again");
        }
    });
}

#[test]
fn addresses_of_the_ignored_device_are_not_reported() {
    in_namespace(|| {
        let mut watch = watch(IpFamily::V4, Some(DEVICE));
        run(MAKE);
        run("ip addr add 10.96.0.10/32 dev kube-ipvs0");
        assert!(!watch.changed(Instant::now()));
        run("ip addr add 10.96.0.11/32 dev kube-ipvs0");
        run("ip addr add 192.0.2.99/32 dev lo");
        assert!(watch.changed(Instant::now()), "another device's among them");
    });
}

#[test]
fn more_news_than_the_socket_holds_count_as_a_change_and_more_can_follow() {
    in_namespace(|| {
        let mut watch = watch(IpFamily::V4, Some(DEVICE));
        run(MAKE);
        let mut links = SystemLinks::open().expect("rtnetlink");
        let address = |n: u32| ipnet::IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a60_0000 + n)));
        let all: Vec<_> = (1..5000).map(|n| AddressOperation::Add(address(n))).collect();
        links.apply(DEVICE, &all, &mut |_, error| panic!("{error}")).expect("addresses");
        // They are the ignored device's, but what was lost may have been another's.
        assert!(watch.changed(Instant::now()));
        assert!(!watch.changed(Instant::now()));
        run("ip addr add 192.0.2.99/32 dev lo");
        assert!(watch.changed(Instant::now()));
    });
}
