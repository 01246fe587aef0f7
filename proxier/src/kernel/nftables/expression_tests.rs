//! What is written to the kernel reads back; garbage is unknown, never a panic.

use proptest::prelude::*;

use super::*;
use crate::kernel::netlink::NLM_F_CREATE;

/// A strategy for instructions of all kinds, fit for both directions.
pub(super) fn any_expression() -> impl Strategy<Value = Expression> {
    let place = || (0_u8..16).prop_map(Register);
    let name = || "[a-z][a-z0-9-]{0,12}".prop_map(Into::into);
    let load = prop_oneof![
        any::<(bool, u8)>().prop_map(|(network, offset)| {
            Load::Payload(if network { Origin::Network } else { Origin::Transport }, u32::from(offset))
        }),
        prop::sample::select(vec![
            Load::Mark,
            Load::InputName,
            Load::Protocol,
            Load::State,
            Load::Status,
            Load::SourceKind,
            Load::DestinationKind,
        ]),
        (1_u32.., any::<u32>()).prop_map(|(modulus, offset)| Load::Random { modulus, offset }),
    ];
    let verdict = prop_oneof![
        prop::sample::select(vec![Verdict::Accept, Verdict::Drop, Verdict::Return]),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
    ];
    let operation = prop::sample::select(vec![SetOperation::Add, SetOperation::Update, SetOperation::Delete]);
    let bytes = || prop::collection::vec(any::<u8>(), 1..17);
    prop_oneof![
        (load, 1_u32..17, place()).prop_map(|(from, width, to)| {
            let known = BY_WIDTH.iter().find(|(load, _)| *load == from).map_or(4, |(_, width)| *width);
            Expression::Load { from, width: if matches!(from, Load::Payload(..)) { width } else { known }, to }
        }),
        place().prop_map(|from| Expression::SetMark { from }),
        (place(), bytes()).prop_map(|(register, mask)| Expression::Bitwise { register, xor: mask.clone(), mask }),
        (place(), any::<bool>(), bytes()).prop_map(|(register, not, value)| Expression::Compare {
            register,
            not,
            value
        }),
        (name(), place(), prop::option::of(place()), any::<(bool, bool)>()).prop_map(
            |(set, key, to, (verdict, not))| {
                Expression::Lookup { set, key, verdict: verdict && to.is_none(), to, not }
            }
        ),
        (name(), operation, place(), any::<u32>()).prop_map(|(set, operation, key, timeout)| {
            Expression::Dynset { set, operation, key, timeout: u64::from(timeout) }
        }),
        verdict.prop_map(Expression::Verdict),
        (any::<u8>(), place(), place()).prop_map(|(family, address, port)| Expression::Dnat { family, address, port }),
        any::<bool>().prop_map(|random| Expression::Masquerade { random }),
        any::<u8>().prop_map(|code| Expression::Reject { code }),
        Just(Expression::Counter),
        name().prop_map(Expression::NamedCounter),
    ]
}

fn written(expressions: &[Expression]) -> Vec<u8> {
    let mut request = Request::new(0, NLM_F_CREATE, &[]);
    expressions.iter().for_each(|expression| write(&mut request, expression));
    request.into_attributes()
}

proptest! {
    #[test]
    fn instructions_read_back(expressions in prop::collection::vec(any_expression(), 0..6)) {
        prop_assert_eq!(read_list(Attributes::new(&written(&expressions))), expressions);
    }

    #[test]
    fn damaged_ones_never_panic(
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
