//! ipset messages round-trip with unknown attributes, and damaged ones never panic.

use proptest::prelude::*;

use super::super::super::netlink::fuzz::{damaged, flaws, put_unknown, unknown};
use super::*;

fn any_name() -> impl Strategy<Value = SetName> {
    "[A-Za-z0-9-]{1,31}".prop_map(|name| SetName::parse(&name).expect("a name"))
}

fn any_set() -> impl Strategy<Value = Set> {
    let set_type = proptest::sample::select(SetType::ALL.to_vec());
    let family = proptest::sample::select(IpFamily::ALL.to_vec());
    let sizes = (any::<u32>(), any::<bool>());
    (any_name(), set_type, family, sizes).prop_map(|(name, set_type, family, (max_entries, counters))| {
        let set = Set::new(name, set_type, family);
        let set = Set { counters, ..set };
        if set_type == SetType::BitmapPort { set } else { Set { max_entries, ..set } }
    })
}

fn any_ip_port_proto() -> impl Strategy<Value = IpPortProto> {
    any::<(IpAddr, u8, u16)>().prop_map(|(ip, protocol, port)| IpPortProto { ip, protocol, port })
}

/// A list of entries of one type.
fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    let any_net = any::<(IpAddr, u8)>().prop_map(|(ip, prefix)| {
        let net = IpNet::new(ip, prefix % if ip.is_ipv4() { 33 } else { 129 }).expect("a prefix");
        net.trunc()
    });
    let many = 1..20;
    prop_oneof![
        proptest::collection::vec(any_ip_port_proto().prop_map(Entry::IpPort), many.clone()),
        proptest::collection::vec(
            (any_ip_port_proto(), any::<IpAddr>()).prop_map(|(a, b)| Entry::IpPortIp(a, b)),
            many.clone()
        ),
        proptest::collection::vec(
            (any_ip_port_proto(), any_net).prop_map(|(a, b)| Entry::IpPortNet(a, b)),
            many.clone()
        ),
        proptest::collection::vec(any::<IpAddr>().prop_map(Entry::Ip), many.clone()),
        proptest::collection::vec(any::<u16>().prop_map(Entry::Port), many),
    ]
}

fn after_header(bytes: &[u8]) -> Attributes<'_> {
    Attributes::new(bytes.get(HEADER..).unwrap_or_default())
}

proptest! {
    #[test]
    fn sets_round_trip(set in any_set(), more in unknown(), flaws in flaws()) {
        let mut request = create(&set, 5);
        put_unknown(&mut request, &more);
        let bytes = request.into_attributes();
        let found = found(after_header(&bytes)).expect("a set");
        prop_assert_eq!((found.name, found.set, found.references, found.entries), (set.name, Some(set), 0, None));
        prop_assert_eq!(read_revision(after_header(&bytes)), Some(5));
        let bytes = damaged(bytes, &flaws);
        let _ = (super::found(after_header(&bytes)), read_revision(after_header(&bytes)));
    }

    #[test]
    fn entries_round_trip(all in any_entries(), name in any_name(), more in unknown(), flaws in flaws()) {
        for verb in [Verb::Add, Verb::AddNew, Verb::Delete] {
            let mut request = change(verb, name, all.iter().copied());
            put_unknown(&mut request, &more);
            let bytes = request.into_attributes();
            let read: Vec<Entry> = entries(after_header(&bytes), all[0].set_type()).map(|(entry, _)| entry).collect();
            prop_assert_eq!(&read, &all);
            prop_assert_eq!(failed_entry(&bytes), None, "line 0 is none");
            let bytes = damaged(bytes, &flaws);
            for set_type in SetType::ALL {
                prop_assert!(entries(after_header(&bytes), set_type).count() <= bytes.len());
            }
            let _ = failed_entry(&bytes);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (found(Attributes::new(&bytes)), failed_entry(&bytes));
        for set_type in SetType::ALL {
            prop_assert!(entries(Attributes::new(&bytes), set_type).count() <= bytes.len());
        }
    }
}

#[test]
fn failed_entry_is_found_by_line_number() {
    let mut request = Request::new(0, 0, &nfgenmsg(2));
    request.text(IPSET_ATTR_SETNAME, "A").attribute(IPSET_ATTR_LINENO, &7_u32.to_ne_bytes());
    let shown = request.into_attributes();
    assert_eq!(failed_entry(&shown), Some(6));
    assert_eq!(failed_entry(&shown[..HEADER]), None);
    assert_eq!(failed_entry(&[]), None);
}

#[test]
fn decoded_network_has_no_host_bits() {
    let place = IpPortProto { ip: IpAddr::from([10, 0, 0, 1]), protocol: 6, port: 80 };
    let mut request = Request::new(0, 0, &nfgenmsg(2));
    request.nested(IPSET_ATTR_ADT, |all| {
        all.nested(IPSET_ATTR_DATA, |data| {
            put_ip_port_proto(data, &place);
            put_ip(data, IPSET_ATTR_IP2, IpAddr::from([10, 1, 2, 3]));
            data.attribute(IPSET_ATTR_CIDR2, &[8]);
        });
    });
    let bytes = request.into_attributes();
    let read: Vec<Entry> = entries(after_header(&bytes), SetType::HashIpPortNet).map(|(entry, _)| entry).collect();
    assert_eq!(read, [Entry::IpPortNet(place, "10.0.0.0/8".parse().expect("a network"))]);
}

#[test]
fn full_message_of_longest_entries_fits() {
    let ip = IpAddr::from([0xfd; 16]);
    let place = IpPortProto { ip, protocol: 6, port: 80 };
    let longest = Entry::IpPortNet(place, IpNet::new(ip, 64).expect("a prefix").trunc());
    let name = SetName::new("KUBE-6-LOAD-BALANCER-SOURCE-CID");
    let request = change(Verb::Add, name, std::iter::repeat_n(longest, super::super::system::ENTRIES));
    assert!(request.size() < usize::from(u16::MAX), "{}", request.size());
}
