//! Encoded objects decode to equal ones, and malformed input never panics.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::decode_ruleset;
use super::super::encode::requests;
use super::*;
use crate::IpFamily;
use crate::kernel::netlink::{Request, fuzz};
use crate::nft::{Key, Operation, Table, Verdict};

fn table() -> Table {
    Table { family: IpFamily::V4, name: "kube-proxy".into() }
}

/// The attributes of an operation that is encoded as one request.
fn written(operation: &Operation) -> Vec<u8> {
    let mut all: Vec<Request> = Vec::new();
    requests(&table(), operation, 1, |request, _| all.push(request));
    assert_eq!(all.len(), 1);
    all.remove(0).into_attributes().split_off(4)
}

fn any_element() -> impl Strategy<Value = Element> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..41).prop_map(Vec::into_boxed_slice);
    let name = || "[a-z][a-z0-9/:-]{0,100}".prop_map(Name::from);
    let value = prop_oneof![
        bytes().prop_map(Value::Data),
        name().prop_map(|chain| Value::Verdict(Verdict::Goto(chain))),
        Just(Value::Verdict(Verdict::Drop)),
    ];
    let option = |strategy| prop::option::of(strategy);
    (bytes(), option(bytes()), prop::option::of(value), prop::option::of(name()), prop::option::of(1_u32..1_000_000))
        .prop_map(|(key, end, value, comment, timeout)| Element { key, end, value, comment, timeout })
}

#[test]
fn long_element_list_is_split_into_requests() {
    let set = Arc::new(Set::of("s", [crate::nft::Field::Port]));
    let elements: Vec<Element> = (0..9000).map(|port| Element::member(Key::default().port(port).build())).collect();
    let mut read = Vec::new();
    let mut firsts = Vec::new();
    requests(&table(), &Operation::AddElements(set, elements.clone()), 1, |request, first| {
        assert!(request.size() < 65_535);
        assert_eq!(first, read.len());
        firsts.push(first);
        let attributes = request.into_attributes().split_off(4);
        read.extend(super::elements(Attributes::new(&attributes)));
    });
    assert!(firsts.len() > 1 && read == elements);
}

#[test]
fn set_with_oversized_key_is_rejected() {
    for (length, is_read) in [(64, true), (1024, true), (1025, false), (u32::MAX - 3, false)] {
        let mut request = Request::new(0, 0, &[]);
        request.text(NFTA_SET_NAME, "s").attribute(NFTA_SET_KEY_LEN, &u32::to_be_bytes(length));
        let bytes = request.into_attributes();
        let attributes = Attributes::new(&bytes);
        assert_eq!(
            (set(attributes).is_some(), decode_ruleset::set(attributes).is_some()),
            (is_read, is_read),
            "{length}"
        );
    }
}

proptest! {
    #[test]
    fn elements_round_trip_and_damaged_ones_never_panic(
        written_elements in prop::collection::vec(any_element(), 1..6),
        cut: prop::sample::Index,
        damage: (prop::sample::Index, u8),
    ) {
        let set = Arc::new(Set::of("s", [crate::nft::Field::Port]));
        let mut bytes = written(&Operation::AddElements(set, written_elements.clone()));
        let read: Vec<Element> = elements(Attributes::new(&bytes)).collect();
        prop_assert_eq!(&read, &written_elements);
        let keys: Vec<_> = element_items(Attributes::new(&bytes)).filter_map(decode_ruleset::element).map(|(e, _)| e.key).collect();
        prop_assert_eq!(keys, written_elements.iter().map(|element| element.key.clone()).collect::<Vec<_>>());
        let at = damage.0.index(bytes.len());
        bytes[at] = damage.1;
        bytes.truncate(cut.index(bytes.len() + 1));
        prop_assert!(elements(Attributes::new(&bytes)).count() <= written_elements.len() + 64);
    }

    #[test]
    fn malformed_input_is_not_an_object(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let attributes = Attributes::new(&bytes);
        let _ = (chain(attributes), rule(attributes), set(attributes), count(attributes), table_comment(attributes));
        let _ = (decode_ruleset::table(attributes), decode_ruleset::chain(attributes), decode_ruleset::rule(attributes), decode_ruleset::set(attributes));
        let items = || element_items(attributes).filter_map(decode_ruleset::element);
        prop_assert!(elements(attributes).count() <= bytes.len() && items().count() <= bytes.len());
    }

    #[test]
    fn lookup_keys_round_trip(keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..41), 0..65)) {
        let keys: Vec<crate::nft::Bytes> = keys.into_iter().map(Vec::into_boxed_slice).collect();
        let set = Set::of("s", [crate::nft::Field::Port]);
        let request = encode::lookup(&table(), &set, &keys).into_attributes().split_off(4);
        let read: Vec<_> = elements(Attributes::new(&request)).map(|element| element.key).collect();
        prop_assert_eq!(read, keys);
    }

    #[test]
    fn element_count_round_trips(many: u32, unknown in fuzz::unknown(), flaws in fuzz::flaws()) {
        let mut request = Request::new(0, 0, &[]);
        fuzz::put_unknown(&mut request, &unknown);
        request.text(NFTA_SET_NAME, "s").attribute(NFTA_SET_COUNT, &many.to_be_bytes());
        let bytes = request.into_attributes();
        let read = usize::try_from(many).ok().map(|many| ("s".into(), many));
        prop_assert_eq!(count(Attributes::new(&bytes)), read);
        let _ = count(Attributes::new(&fuzz::damaged(bytes, &flaws)));
    }

    #[test]
    fn chains_round_trip(priority: i32, drop: bool, hook in 0_usize..5, nat: bool, comment in "[a-z]{0,40}") {
        let base = BaseChain { kind: if nat { ChainType::Nat } else { ChainType::Filter }, hook: Hook::ALL[hook], priority, drop };
        for base in [None, Some(base)] {
            let written_chain = Chain { name: "c".into(), base, comment: Some(comment.as_str().into()) };
            let bytes = written(&Operation::AddChain(written_chain.clone()));
            prop_assert_eq!(chain(Attributes::new(&bytes)), Some(written_chain));
        }
    }
}
