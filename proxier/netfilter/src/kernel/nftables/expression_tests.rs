//! Encoded expressions decode to equal ones; malformed input is unknown and never panics.

use proptest::prelude::*;

use super::*;
use crate::kernel::netlink::NLM_F_CREATE;
use crate::kernel::nftables::strategies::any_expression;

fn written(expressions: &[Expression]) -> Vec<u8> {
    let mut request = Request::new(0, NLM_F_CREATE, &[]);
    expressions.iter().for_each(|expression| write(&mut request, expression));
    request.into_attributes()
}

#[test]
fn register_out_of_range_is_none() {
    let known: Vec<u32> = (0..300).filter(|number| register(*number).is_some()).collect();
    assert_eq!(known, (1..=4).chain(8..=23).collect::<Vec<u32>>());
    for written in known.iter().filter_map(|number| register(*number)) {
        assert_eq!(register(number(written)), Some(written));
    }
}

proptest! {
    #[test]
    fn expressions_round_trip(expressions in prop::collection::vec(any_expression(), 0..6)) {
        prop_assert_eq!(read_list(Attributes::new(&written(&expressions))), expressions);
    }

    #[test]
    fn damaged_expressions_never_panic(
        expressions in prop::collection::vec(any_expression(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
    ) {
        let mut bytes = written(&expressions);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        prop_assert!(read_list(Attributes::new(&bytes)).len() <= bytes.len() / 4);
    }
}
