//! Tests of the codec without a kernel: generated rules of all shapes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::rule::{DecodedRule, decode, encode};
use super::sets::SetIndex;
use crate::IpFamily;
use crate::iptables::{Chain, Comment, Match, Negatable, ProtocolName, Rule, Suffix, Target};
use crate::kernel::netlink::{Attributes, Request};

const SETS: [(&str, u16); 3] = [("KUBE-CLUSTER-IP", 1), ("KUBE-LOOP-BACK", 7), ("KUBE-6-CLUSTER-IP", 300)];

fn negatable<T: std::fmt::Debug + Clone>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Negatable<T>> {
    (any::<bool>(), value).prop_map(|(not, value)| Negatable { not, value })
}

fn address(family: IpFamily) -> BoxedStrategy<IpAddr> {
    match family {
        IpFamily::V4 => any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))).boxed(),
        IpFamily::V6 => any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))).boxed(),
    }
}

fn net(family: IpFamily) -> impl Strategy<Value = IpNet> {
    let longest = if family == IpFamily::V4 { 32_u8 } else { 128 };
    (address(family), 1..=longest).prop_map(|(ip, length)| IpNet::new(ip, length).expect("a prefix").trunc())
}

fn socket(family: IpFamily) -> impl Strategy<Value = SocketAddr> {
    (address(family), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn chain() -> impl Strategy<Value = Chain> {
    "KUBE-[A-Z0-9]{1,20}".prop_map(|name| Chain::parse(&name).expect("a name"))
}

fn a_match(family: IpFamily) -> impl Strategy<Value = Match> {
    let states =
        prop_oneof![Just("NEW"), Just("INVALID"), Just("RELATED,ESTABLISHED"), Just("RELATED,ESTABLISHED,DNAT")];
    let suffix = prop_oneof![
        Just(Suffix::Text(" cluster IP")),
        socket(family).prop_map(Suffix::Endpoint),
        chain().prop_map(|chain| Suffix::Chain(" -> ", chain)),
    ];
    let comment = (r#"[ -~é]{0,80}"#, suffix)
        .prop_map(|(subject, suffix)| Match::Comment(Comment { prefix: "of ", subject: Arc::from(subject), suffix }));
    let sets =
        (prop::sample::select(SETS.as_slice()), prop::sample::select(["dst", "dst,dst", "dst,dst,src"].as_slice()));
    prop_oneof![
        3 => comment,
        1 => negatable(states).prop_map(Match::CtState),
        1 => negatable(any::<u32>()).prop_map(Match::Mark),
        1 => prop_oneof![
            Just(Match::SourceIsLocal),
            Just(Match::SourceIsNotLocal),
            Just(Match::DestinationIsLocal),
            Just(Match::NotFromBridge),
            Just(Match::Account("ct_state_invalid_dropped_pkts")),
        ],
        1 => sets.prop_map(|((name, _), directions)| Match::Set { name, directions }),
        1 => (any::<u8>(), socket(family)).prop_map(|(protocol, address)| Match::Ipvs { protocol, address }),
        1 => (1..20_000_u32).prop_map(Match::OneIn),
        1 => (chain(), any::<u32>()).prop_map(move |(list, seconds)| Match::RecentlySeen { list, seconds, family }),
        1 => chain().prop_map(move |list| Match::RememberSource { list, family }),
    ]
}

fn target(family: IpFamily) -> impl Strategy<Value = Target> {
    prop_oneof![
        3 => chain().prop_map(Target::Jump),
        1 => prop_oneof![Just(Target::Accept), Just(Target::Drop), Just(Target::Return), Just(Target::Reject(family))],
        1 => (1..=u32::MAX).prop_map(Target::SetMark),
        1 => any::<u32>().prop_map(Target::FlipMark),
        1 => any::<bool>().prop_map(|random_fully| Target::Masquerade { random_fully }),
        1 => socket(family).prop_map(Target::Dnat),
    ]
}

fn rule(family: IpFamily) -> impl Strategy<Value = Rule> {
    const PROTOCOLS: [ProtocolName; 3] = ["tcp", "udp", "sctp"];
    let transport = (prop::sample::select(PROTOCOLS.as_slice()), option::of(any::<u16>()));
    (
        (option::of(negatable(net(family))), option::of(negatable(net(family)))),
        option::of(negatable(r"[a-z0-9.]{1,14}\+?")),
        option::of(transport),
        vec(a_match(family), 0..4),
        option::of(target(family)),
    )
        .prop_map(|((source, destination), in_interface, transport, mut matches, target)| {
            matches.extend(transport.map(|(name, port)| match port {
                Some(port) => Match::DestinationPort(name, port),
                None => Match::Transport(name),
            }));
            let protocol = transport.map(|(name, _)| name);
            Rule { source, destination, in_interface, protocol, matches, target }
        })
}

fn family() -> impl Strategy<Value = IpFamily> {
    prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)]
}

fn encoded(family: IpFamily, rule: &Rule) -> Vec<u8> {
    let mut request = Request::new(0, 0, &[]);
    encode(family, rule, &mut SetIndex::of(&SETS), &mut request).expect("it can be encoded");
    request.into_attributes()
}

proptest! {
    #[test]
    fn any_rule_is_decoded_as_it_was_encoded((family, rule) in family().prop_flat_map(|f| (Just(f), rule(f)))) {
        let bytes = encoded(family, &rule);
        let (decoded, counters) = decode(family, Attributes::new(&bytes), &mut SetIndex::of(&SETS));
        let DecodedRule::Known(decoded) = decoded else { panic!("{decoded:?}: {rule}") };
        prop_assert_eq!(decoded.to_string(), rule.to_string());
        prop_assert_eq!(counters, Some(crate::Counters::default()));
        prop_assert_eq!(Rule::parse(family, &rule.to_string()), Some(decoded));
    }

    #[test]
    fn changed_bytes_never_panic(
        (family, rule) in family().prop_flat_map(|f| (Just(f), rule(f))),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(family, &rule);
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        let _ = decode(family, Attributes::new(&bytes), &mut SetIndex::of(&SETS));
    }
}

#[test]
fn rule_that_cannot_be_encoded_says_why() {
    let comment = |length| Rule {
        matches: vec![Match::Comment(Comment {
            prefix: "",
            subject: "x".repeat(length).into(),
            suffix: Suffix::Text(""),
        })],
        ..Rule::default()
    };
    let interface = |name: &str| Rule { in_interface: Some(Negatable::new(name.to_owned())), ..Rule::default() };
    for (rule, why) in [
        (comment(256), "the comment has 256 bytes"),
        (interface("+"), "interface name"),
        (interface("a-name-of-16-byt"), "interface name"),
        (Rule { source: Some(Negatable::new(IpFamily::V6.loopback())), ..Rule::default() }, "another family"),
    ] {
        let error = encode(IpFamily::V4, &rule, &mut SetIndex::default(), &mut Request::new(0, 0, &[]));
        assert!(error.as_ref().is_err_and(|error| error.contains(why)), "{error:?}");
    }
    encode(IpFamily::V4, &comment(255), &mut SetIndex::default(), &mut Request::new(0, 0, &[])).expect("it fits");
}
