//! The fakes accept, refuse and list the same as the kernel under random operations.
//!
//! Needs what `ipvs_kernel` needs.

use netfilter::IpFamily;
use netfilter::ipset::{Entry, IpPortProto, Set, SetName, SetType};
use netfilter::ipvs::{Flags, Forward, Persistence, RealServer, SCTP, Scheduler, ServerKey, TCP, UDP, VirtualServer};
use netfilter::kernel::{AddressOperation, Links, Operation, SetOperation, SystemIpSets, SystemIpvs, SystemLinks};
use netfilter::testing::{FakeIpSets, FakeIpvs, FakeLinks};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::common::namespace::{enter_new, in_namespace};
use crate::contract::{ipset, ipvs, link};

/// Runs a property in a namespace that is new for each case.
fn check<S: Strategy + Send + 'static>(
    strategy: S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError> + Send + 'static,
) {
    in_namespace(move || {
        let asked = ProptestConfig::default();
        let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { 64 };
        let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..asked });
        let outcome = runner.run(&strategy, |value| {
            enter_new();
            property(value)
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}

fn any_key() -> impl Strategy<Value = ServerKey> {
    let addresses = vec!["10.0.0.1:80", "10.0.0.1:443", "10.0.0.2:80", "[fd00::1]:80", "[fd00::2]:80"];
    (select(addresses), select(vec![TCP, UDP, SCTP])).prop_map(|(text, protocol)| ipvs::key(protocol, text))
}

fn any_virtual() -> impl Strategy<Value = VirtualServer> {
    let scheduler = select(vec!["rr", "wrr", "sh", "mh", "lblc", "nosuch"]);
    let persistence = proptest::option::of((1..100_000_u32, 1..=32_u8));
    (any_key(), scheduler, persistence, any::<u32>()).prop_map(|(key, scheduler, persistence, flags)| VirtualServer {
        key,
        scheduler: Scheduler::new(scheduler),
        flags: Flags::of_bits(flags),
        persistence: persistence.map(|(seconds, prefix)| Persistence { seconds, prefix }),
    })
}

fn any_real() -> impl Strategy<Value = RealServer> {
    let addresses = vec!["10.1.0.1:80", "10.1.0.1:81", "10.1.0.2:80", "[fd01::1]:80", "[fd01::2]:80"];
    let forwards = vec![Forward::Masquerade, Forward::Masquerade, Forward::Route, Forward::Tunnel];
    (select(addresses), select(forwards), prop_oneof![0..3_u32, any::<u32>()])
        .prop_map(|(address, forward, weight)| RealServer { forward, ..ipvs::real(address, weight) })
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => any_virtual().prop_map(Operation::AddVirtual),
        1 => any_virtual().prop_map(Operation::UpdateVirtual),
        1 => any_key().prop_map(Operation::DeleteVirtual),
        4 => (any_key(), any_real()).prop_map(|(key, real)| Operation::AddReal(key, real)),
        2 => (any_key(), any_real()).prop_map(|(key, real)| Operation::UpdateReal(key, real)),
        1 => (any_key(), any_real()).prop_map(|(key, real)| Operation::DeleteReal(key, real.address)),
    ]
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_fake_of_ipvs_is_like_the_kernel() {
    check(proptest::collection::vec(any_operation(), 1..80), |operations| {
        let (mut fake, mut kernel) = (FakeIpvs::default(), SystemIpvs::open().expect("IPVS"));
        prop_assert_eq!(ipvs::apply(&mut fake, &operations), ipvs::apply(&mut kernel, &operations));
        let servers = ipvs::virtual_servers(&mut kernel);
        prop_assert_eq!(ipvs::virtual_servers(&mut fake), servers.clone());
        for server in servers {
            let [ours, theirs] =
                [ipvs::real_servers(&mut fake, server.key), ipvs::real_servers(&mut kernel, server.key)];
            prop_assert_eq!(ours, theirs, "{}", server);
        }
        Ok(())
    });
}

const NAMES: [SetName; 4] = [SetName::new("A"), SetName::new("B"), SetName::new("C"), SetName::new("D")];

fn any_set() -> impl Strategy<Value = Set> {
    let families = select(IpFamily::ALL.to_vec());
    (select(NAMES.to_vec()), select(SetType::ALL.to_vec()), families, select(vec![2_u32, 65536])).prop_map(
        |(name, set_type, family, max_entries)| match Set::new(name, set_type, family) {
            set if set_type == SetType::BitmapPort => set,
            set => Set { max_entries, ..set },
        },
    )
}

/// An entry of each type for each of a few numbers, some of which the kernel does not take.
fn entry(set_type: SetType, family: IpFamily, number: u8) -> Entry {
    let [x, y] = match family {
        IpFamily::V4 => ["10.0.0.1", "0.0.0.0"],
        IpFamily::V6 => ["fd00::1", "::"],
    };
    // Whether ports of the zero address are taken depends on the kernel's age.
    let ip = ipset::ip(if number == 7 && set_type == SetType::HashIp { y } else { x });
    let place = IpPortProto { ip, protocol: [6, 17, 132, 0][usize::from(number % 4)], port: number.into() };
    let prefix = if family == IpFamily::V4 { [0, 1, 24, 32] } else { [0, 1, 64, 128] }[usize::from(number % 4)];
    match set_type {
        SetType::HashIpPort => Entry::IpPort(place),
        SetType::HashIpPortIp => Entry::IpPortIp(place, ip),
        SetType::HashIpPortNet => {
            let place = IpPortProto { protocol: 6, ..place };
            Entry::IpPortNet(place, ipnet::IpNet::new(ip, prefix).expect("a prefix"))
        }
        SetType::HashIp => Entry::Ip(ip),
        SetType::BitmapPort => Entry::Port(number.into()),
    }
}

/// What is done, before it is known which types the sets have: a wish for an entry is for one of the set's own type.
#[derive(Clone, Debug)]
enum SysctlSetting {
    Do(SetOperation),
    Entries(SetName, u8, IpFamily, Vec<u8>),
}

fn any_wish() -> impl Strategy<Value = SysctlSetting> {
    let name = || select(NAMES.to_vec());
    let entries = (name(), 0..3_u8, select(IpFamily::ALL.to_vec()), proptest::collection::vec(0..8_u8, 1..5));
    prop_oneof![
        4 => any_set().prop_map(|set| SysctlSetting::Do(SetOperation::Create(set))),
        1 => name().prop_map(|name| SysctlSetting::Do(SetOperation::Destroy(name))),
        1 => name().prop_map(|name| SysctlSetting::Do(SetOperation::Flush(name))),
        1 => (name(), name()).prop_map(|(one, other)| SysctlSetting::Do(SetOperation::Swap(one, other))),
        8 => entries.prop_map(|(name, verb, family, numbers)| SysctlSetting::Entries(name, verb, family, numbers)),
    ]
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_fake_of_ipset_is_like_the_kernel() {
    check(proptest::collection::vec(any_wish(), 1..40), |settings| {
        let (mut fake, mut kernel) = (FakeIpSets::default(), SystemIpSets::open().expect("ipset"));
        for setting in settings {
            let operations = match setting {
                SysctlSetting::Do(operation) => vec![operation],
                SysctlSetting::Entries(name, verb, family, numbers) => {
                    let held = ipset::found(&mut fake).into_iter().find(|found| found.name == name);
                    let set_type = held.and_then(|held| held.set).map_or(SetType::HashIp, |set| set.set_type);
                    let entries = numbers.into_iter().map(|number| entry(set_type, family, number));
                    let operation = [SetOperation::Add, SetOperation::AddNew, SetOperation::Delete][usize::from(verb)];
                    entries.map(|entry| operation(name, entry)).collect()
                }
            };
            prop_assert_eq!(
                ipset::apply(&mut fake, &operations),
                ipset::apply(&mut kernel, &operations),
                "{:?}",
                operations
            );
            let sets = ipset::found(&mut kernel);
            prop_assert_eq!(ipset::found(&mut fake), sets.clone(), "{:?}", operations);
            for set in sets {
                let [ours, theirs] = [ipset::entries(&mut fake, set.name), ipset::entries(&mut kernel, set.name)];
                prop_assert_eq!(ours, theirs, "{:?}", operations);
            }
        }
        Ok(())
    });
}

/// A change to addresses, or to the device.
#[derive(Clone, Debug)]
enum Change {
    Addresses(Vec<AddressOperation>),
    Up(bool),
    Create,
    Delete,
}

fn any_change() -> impl Strategy<Value = Change> {
    let net = || {
        select(vec![
            "10.0.0.1/32",
            "10.0.0.1/24",
            "10.0.0.2/24",
            "10.1.0.1/8",
            "fd00::1/128",
            "fd00::1/64",
            "fd00::2/64",
        ])
    };
    let operation = (any::<bool>(), net()).prop_map(|(add, text)| {
        let net = link::net(text);
        if add { AddressOperation::Add(net) } else { AddressOperation::Delete(net) }
    });
    prop_oneof![
        6 => proptest::collection::vec(operation, 1..6).prop_map(Change::Addresses),
        1 => any::<bool>().prop_map(Change::Up),
        1 => Just(Change::Create),
        1 => Just(Change::Delete),
    ]
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_fake_of_devices_is_like_the_kernel() {
    check(proptest::collection::vec(any_change(), 1..30), |changes| {
        let (mut fake, mut kernel) = (FakeLinks::default(), SystemLinks::open().expect("rtnetlink"));
        let mut both: [&mut dyn Links; 2] = [&mut fake, &mut kernel];
        for link in &mut both {
            link.create_dummy(link::DEVICE).expect("made");
        }
        for change in changes {
            let outcomes = both.each_mut().map(|links| match &change {
                Change::Up(up) => {
                    vec![(0, format!("{:?}", links.set_up(link::DEVICE, *up).map_err(|e| e.to_string())))]
                }
                Change::Create => {
                    vec![(0, format!("{:?}", links.create_dummy(link::DEVICE).map_err(|e| e.to_string())))]
                }
                Change::Delete => {
                    vec![(0, format!("{:?}", links.delete_dummy(link::DEVICE).map_err(|e| e.to_string())))]
                }
                Change::Addresses(operations) => {
                    let mut refused = Vec::new();
                    let failed =
                        &mut |index, error: netfilter::kernel::LinkError| refused.push((index, error.to_string()));
                    if let Err(error) = links.apply(link::DEVICE, operations, failed) {
                        refused.push((0, error.to_string()));
                    }
                    refused
                }
            });
            prop_assert_eq!(&outcomes[0], &outcomes[1], "{:?}", change);
            let devices = both.each_mut().map(|links| {
                let device = links.device(link::DEVICE).expect("an answer");
                device.map(|device| (device.kind, device.up))
            });
            prop_assert_eq!(&devices[0], &devices[1], "{:?}", change);
            if devices[0].is_some() {
                // An IPv6 device that is up has an address of its own.
                let held = both.each_mut().map(|links| {
                    let mut all = link::addresses(*links);
                    all.retain(|net| !net.to_string().starts_with("fe80:"));
                    all
                });
                prop_assert_eq!(&held[0], &held[1], "{:?}", change);
            }
        }
        Ok(())
    });
}
