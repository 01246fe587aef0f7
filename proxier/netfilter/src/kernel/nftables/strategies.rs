//! proptest strategies for expressions.

use proptest::prelude::*;

use super::expression::PASSIVE;
use super::load;
use crate::nft::{Comparison, Expression, Load, PayloadBase, Register, SetOperation, Translation, Verdict};

fn any_load() -> impl Strategy<Value = Load> {
    let numbers = || (1_u32.., any::<u32>());
    prop_oneof![
        (prop::sample::select(vec![PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport]), any::<u8>())
            .prop_map(|(origin, offset)| Load::Payload(origin, u32::from(offset))),
        prop::sample::select(vec![
            Load::Mark,
            Load::InputName,
            Load::OutputName,
            Load::InputIndex,
            Load::OutputIndex,
            Load::Family,
            Load::Protocol,
            Load::Meta(0),
            Load::Meta(1),
            Load::Meta(19),
            Load::CtState,
            Load::CtDirection,
            Load::CtStatus,
            Load::CtMark,
            Load::Ct(5, None),
            Load::Ct(3, Some(1)),
            Load::SourceType,
            Load::DestinationType,
            Load::Fib { result: 1, flags: 9 },
        ]),
        numbers().prop_map(|(modulus, offset)| Load::Random { modulus, offset }),
        numbers().prop_map(|(modulus, offset)| Load::Incremental { modulus, offset }),
    ]
}

/// A strategy for expressions that [`crate::nft::Statement`] does not use.
fn any_other() -> impl Strategy<Value = Expression> {
    let place = || (0_u8..16).prop_map(Register);
    let places = || prop::option::of((place(), place()));
    let bytes = || prop::collection::vec(any::<u8>(), 1..17);
    prop_oneof![
        place().prop_map(|from| Expression::SetConnectionMark { from }),
        place().prop_map(|from| Expression::SetOther { of: "meta", key: 14, from }),
        place().prop_map(|from| Expression::SetOther { of: "ct", key: 5, from }),
        (place(), bytes()).prop_map(|(to, value)| Expression::Immediate { to, value }),
        (place(), any::<bool>(), 1_u32..32).prop_map(|(register, right, bits)| Expression::Shift {
            register,
            length: 4,
            right,
            bits
        }),
        (place(), any::<bool>()).prop_map(|(register, to_network)| Expression::ByteOrder {
            register,
            length: 4,
            size: 4,
            to_network
        }),
        (place(), prop::sample::select(Comparison::ALL.to_vec()), bytes())
            .prop_map(|(register, order, value)| Expression::CompareOrder { register, order, value }),
        (place(), any::<bool>(), bytes()).prop_map(|(register, not, from)| Expression::Range {
            register,
            not,
            to: from.clone(),
            from
        }),
        (prop::option::of((place(), 1_u32..64)), place(), 1_u32.., any::<Option<u32>>(), any::<u32>())
            .prop_map(|(of, to, modulus, seed, offset)| Expression::Hash { of, to, modulus, seed, offset }),
        (any::<bool>(), places(), places(), prop::sample::select(vec![4_u32, 0x10])).prop_map(
            |(source, address, port, flags)| {
                let kind = if source { Translation::Source } else { Translation::Destination };
                Expression::Translate { kind, family: 2, address, port, flags }
            }
        ),
        (any::<bool>(), place(), prop::sample::select(vec![0_u32, 4, 0x10])).prop_map(|(here, port, flags)| {
            let kind = if here { Translation::Redirect } else { Translation::Masquerade };
            Expression::Translate { kind, family: 0, address: None, port: Some((port, port)), flags }
        }),
        (1_u32..3, any::<u8>()).prop_map(|(kind, code)| Expression::RejectWith { kind, code }),
        Just(Expression::NoTrack),
        prop::sample::select(PASSIVE.to_vec()).prop_map(Expression::Passive),
    ]
}

/// A strategy for expressions of all kinds that can be both encoded and decoded.
pub fn any_expression() -> impl Strategy<Value = Expression> {
    let place = || (0_u8..16).prop_map(Register);
    let name = || "[a-z][a-z0-9-]{0,12}".prop_map(Into::into);
    let load = any_load();
    let verdict = prop_oneof![
        prop::sample::select(vec![Verdict::Accept, Verdict::Drop, Verdict::Return, Verdict::Continue]),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
    ];
    let operation = prop::sample::select(vec![SetOperation::Add, SetOperation::Update, SetOperation::Delete]);
    let bytes = || prop::collection::vec(any::<u8>(), 1..17);
    prop_oneof![
        (load, 1_u32..17, place()).prop_map(|(from, width, to)| {
            let width = if matches!(from, Load::Payload(..)) { width } else { load::width(from) };
            Expression::Load { from, width, to }
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
        any_other(),
    ]
}
