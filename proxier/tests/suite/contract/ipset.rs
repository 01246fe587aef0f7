//! The contract of ipsets, for the kernel and the fake.

use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::ipset::{Entry, IpPortProto, ObservedSet, Set, SetName, SetType};
use netfilter::kernel::{IpSets, SetOperation};

use SetOperation::{Add, AddNew, Create, Delete, Destroy, Flush, Swap};

const A: SetName = SetName::new("KUBE-A");
const B: SetName = SetName::new("KUBE-6-LOAD-BALANCER-SOURCE-CID");
const C: SetName = SetName::new("KUBE-C");
const GONE: SetName = SetName::new("KUBE-GONE");

pub fn place(ip: &str, protocol: u8, port: u16) -> IpPortProto {
    IpPortProto { ip: ip.parse().expect("an address"), protocol, port }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// What is refused, in words, by index.
pub fn apply(sets: &mut dyn IpSets, operations: &[SetOperation]) -> Vec<(usize, String)> {
    let mut refused = Vec::new();
    sets.apply(operations, &mut |index, error| refused.push((index, error.to_string()))).expect("applied");
    refused
}

/// All sets, in the order of their names.
pub fn found(sets: &mut dyn IpSets) -> Vec<ObservedSet> {
    let mut found = Vec::new();
    sets.sets(&mut |set| found.push(set)).expect("a list");
    found.sort_by_key(|set| set.name);
    found
}

/// The entries of a set, in order.
pub fn entries(sets: &mut dyn IpSets, name: SetName) -> Vec<Entry> {
    let mut entries = Vec::new();
    sets.entries(name, &mut |entry| entries.push(entry)).expect("entries");
    entries.sort_unstable();
    entries
}

/// Every type in every family, with entries of every protocol.
pub fn sets_and_entries_read_back(sets: &mut dyn IpSets) {
    let net = |text: &str| text.parse().expect("a network");
    let mut all = Vec::new();
    for (family, x, y, wide, narrow) in [
        (IpFamily::V4, "10.0.0.1", "10.0.0.2", "10.0.0.0/8", "10.9.0.1/32"),
        (IpFamily::V6, "fd00::1", "fd00::2", "fd00::/16", "fd00::9/128"),
    ] {
        let entries_of = |set_type| match set_type {
            SetType::HashIpPort => {
                [6, 17, 132].map(|protocol| Entry::IpPort(place(x, protocol, 80))).into_iter().collect::<Vec<_>>()
            }
            SetType::HashIpPortIp => {
                vec![Entry::IpPortIp(place(x, 6, 80), ip(x)), Entry::IpPortIp(place(x, 6, 80), ip(y))]
            }
            SetType::HashIpPortNet => {
                vec![Entry::IpPortNet(place(x, 6, 80), net(wide)), Entry::IpPortNet(place(y, 6, 80), net(narrow))]
            }
            SetType::HashIp => vec![Entry::Ip(ip(x)), Entry::Ip(ip(y))],
            SetType::BitmapPort => vec![Entry::Port(0), Entry::Port(30000), Entry::Port(65535)],
        };
        for set_type in SetType::ALL {
            let name = SetName::parse(&format!("{}-{}", family.ipset(), set_type.name())).expect("a name");
            all.push((Set::new(name, set_type, family), entries_of(set_type)));
        }
    }
    let mut operations: Vec<SetOperation> = all.iter().map(|(set, _)| Create(*set)).collect();
    operations.extend(all.iter().flat_map(|(set, entries)| entries.iter().map(|entry| Add(set.name, *entry))));
    assert_eq!(apply(sets, &operations), []);
    assert_eq!(apply(sets, &operations), [], "what is there will do");
    assert_eq!(found(sets).len(), all.len());
    for (set, mut wanted) in all {
        let found = sets.set(set.name).expect("an answer").expect("it is there");
        assert_eq!((found.set, found.references), (Some(set), 0), "{set}");
        assert_eq!(found.entries, u32::try_from(wanted.len()).ok(), "{set}");
        wanted.sort_unstable();
        assert_eq!(entries(sets, set.name), wanted, "{set}");
        assert_eq!(apply(sets, &[Delete(set.name, wanted[0])]), [], "{set}");
        assert_eq!(entries(sets, set.name), wanted[1..], "{set}");
        assert_eq!(apply(sets, &[Flush(set.name)]), [], "{set}");
        assert_eq!(entries(sets, set.name), [], "{set}");
    }
}

/// What cannot be done is refused by name, and does not keep the rest from being done.
pub fn refusals_name_the_object(sets: &mut dyn IpSets) {
    let v4 = Set::new(A, SetType::HashIpPort, IpFamily::V4);
    let ports = Set::new(B, SetType::BitmapPort, IpFamily::V6);
    let small = Set { max_entries: 2, ..Set::new(C, SetType::HashIp, IpFamily::V4) };
    let (one, two) = (Entry::IpPort(place("10.0.0.1", 6, 80)), Entry::IpPort(place("10.0.0.2", 6, 80)));
    let operations = [
        Create(v4),
        Create(ports),
        Create(small),
        Create(v4),
        Create(Set { family: Some(IpFamily::V6), ..v4 }),
        Create(Set { max_entries: 7, ..v4 }),
        Create(Set { name: A, ..ports }),
        AddNew(A, one),
        AddNew(A, two),
        AddNew(A, one),
        AddNew(A, Entry::IpPort(place("10.0.0.3", 6, 80))),
        Delete(A, Entry::IpPort(place("10.0.0.4", 6, 80))),
        Delete(A, two),
        Add(A, Entry::IpPort(place("fd00::1", 6, 80))),
        Add(A, Entry::IpPort(place("10.0.0.5", 0, 80))),
        Add(GONE, one),
        Add(GONE, two),
        Delete(GONE, one),
        Destroy(GONE),
        Flush(GONE),
        Swap(A, GONE),
        Swap(A, B),
        Add(C, Entry::Ip(ip("10.0.0.1"))),
        Add(C, Entry::Ip(ip("0.0.0.0"))),
        Add(C, Entry::Ip(ip("10.0.0.2"))),
        Add(C, Entry::Ip(ip("10.0.0.3"))),
        Add(C, Entry::Ip(ip("10.0.0.1"))),
        Add(A, two),
        Add(A, Entry::Ip(ip("10.0.0.1"))),
        Add(A, Entry::Port(80)),
        Delete(A, two),
        Delete(A, Entry::Port(80)),
    ];
    let clash = |wanted: &str| {
        format!(
            "ipset KUBE-A exists with another type: found hash:ip,port family inet maxelem 65536, wanted {wanted}; find \
             what uses it (ipset list KUBE-A; iptables-save) and destroy it"
        )
    };
    let gone = || "ipset KUBE-GONE: does not exist".to_owned();
    let expected = [
        (4, clash("hash:ip,port family inet6 maxelem 65536")),
        (5, clash("hash:ip,port family inet maxelem 7")),
        (6, clash("bitmap:port range 0-65535")),
        (9, "entry 10.0.0.1,tcp:80 of ipset KUBE-A: exists already".to_owned()),
        (11, "entry 10.0.0.4,tcp:80 of ipset KUBE-A: does not exist".to_owned()),
        (13, "entry fd00::1,tcp:80 of ipset KUBE-A: type or family differs from that of the set".to_owned()),
        (14, "entry 10.0.0.5,0:80 of ipset KUBE-A: invalid protocol".to_owned()),
        (15, gone()),
        (16, gone()),
        (17, gone()),
        (18, gone()),
        (19, gone()),
        (20, "one of ipsets KUBE-A and KUBE-GONE: does not exist".to_owned()),
        (21, format!("ipsets KUBE-A and {B}: type or family differs from that of the set")),
        (23, "entry 0.0.0.0 of ipset KUBE-C: the address is zero".to_owned()),
        (25, "10.0.0.3: ipset KUBE-C is full".to_owned()),
        (28, "entry 10.0.0.1 of ipset KUBE-A: type or family differs from that of the set".to_owned()),
        (29, "entry 80 of ipset KUBE-A: type or family differs from that of the set".to_owned()),
        (31, "entry 80 of ipset KUBE-A: type or family differs from that of the set".to_owned()),
    ];
    assert_eq!(apply(sets, &operations), expected);
    assert_eq!(entries(sets, A), [one, Entry::IpPort(place("10.0.0.3", 6, 80))]);
    assert_eq!(entries(sets, C), [Entry::Ip(ip("10.0.0.1")), Entry::Ip(ip("10.0.0.2"))]);
    assert_eq!(sets.set(GONE).expect("an answer"), None);
    let error = sets.entries(GONE, &mut |_| ()).expect_err("no such set");
    assert_eq!(error.to_string(), "ipset KUBE-GONE: does not exist");
}

/// A set is filled aside and put in the place of another.
pub fn sets_are_swapped(sets: &mut dyn IpSets) {
    let of = |name| Set::new(name, SetType::HashIpPortIp, IpFamily::V6);
    let entry = |port| Entry::IpPortIp(place("fd00::1", 6, port), ip("fd00::1"));
    let mut operations = vec![Create(of(A)), Create(of(C)), Add(A, entry(1))];
    operations.extend([Add(C, entry(2)), Add(C, entry(3)), Swap(C, A), Destroy(C)]);
    assert_eq!(apply(sets, &operations), []);
    assert_eq!(entries(sets, A), [entry(2), entry(3)]);
    assert_eq!(found(sets).len(), 1);
}

/// More entries than go into one message, failures among them.
pub fn many_entries_at_once(sets: &mut dyn IpSets) {
    let set = Set::new(A, SetType::HashIpPortNet, IpFamily::V6);
    let net = "fd00:1:2:3::/64".parse().expect("a network");
    let entry = |port| Entry::IpPortNet(place("fd00:1:2:3:4:5:6:7", 132, port), net);
    let wanted: Vec<Entry> = (1..=1500).map(entry).collect();
    let mut operations = vec![Create(set)];
    operations.extend(wanted.iter().map(|entry| AddNew(A, *entry)));
    assert_eq!(apply(sets, &operations), []);
    assert_eq!(entries(sets, A), wanted);
    // Every third is taken out; adding all again fails for the others.
    let third = |entry: &&Entry| matches!(entry, Entry::IpPortNet(place, _) if place.port % 3 == 0);
    let deleted: Vec<SetOperation> = wanted.iter().filter(third).map(|entry| Delete(A, *entry)).collect();
    assert_eq!((deleted.len(), apply(sets, &deleted)), (500, Vec::new()));
    let refused: Vec<usize> = apply(sets, &operations[1..]).into_iter().map(|(index, _)| index).collect();
    let expected: Vec<usize> = (0..1500).filter(|index| (index + 1) % 3 != 0).collect();
    assert_eq!(refused, expected);
    assert_eq!(entries(sets, A), wanted);
}
