//! Damage to messages, for tests of decoders.

use proptest::prelude::*;
use proptest::sample::Index;

use super::Request;

/// A kind of damage.
#[derive(Clone, Debug)]
pub enum Flaw {
    /// Truncation.
    Cut(Index),
    /// A changed byte.
    Byte(Index, u8),
    /// Missing bytes.
    Gap(Index, u8),
    /// Additional bytes.
    More(Index, Vec<u8>),
}

/// A strategy for one to three kinds of damage.
pub fn flaws() -> impl Strategy<Value = Vec<Flaw>> {
    let flaw = prop_oneof![
        any::<Index>().prop_map(Flaw::Cut),
        any::<(Index, u8)>().prop_map(|(at, byte)| Flaw::Byte(at, byte)),
        any::<(Index, u8)>().prop_map(|(at, length)| Flaw::Gap(at, length)),
        (any::<Index>(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, bytes)| Flaw::More(at, bytes)),
    ];
    proptest::collection::vec(flaw, 1..4)
}

/// Applies the damage to a message.
pub fn damaged(mut bytes: Vec<u8>, flaws: &[Flaw]) -> Vec<u8> {
    for flaw in flaws {
        let length = bytes.len();
        match flaw {
            _ if length == 0 => {}
            Flaw::Cut(at) => bytes.truncate(at.index(length)),
            Flaw::Byte(at, byte) => bytes[at.index(length)] = *byte,
            Flaw::Gap(at, gap) => {
                drop(bytes.drain(at.index(length)..(at.index(length) + usize::from(*gap)).min(length)))
            }
            Flaw::More(at, more) => drop(bytes.splice(at.index(length)..at.index(length), more.iter().copied())),
        }
    }
    bytes
}

/// Appends attributes with numbers that no current kernel uses.
pub fn put_unknown(request: &mut Request, unknown: &[(u16, Vec<u8>)]) {
    for (kind, value) in unknown {
        request.attribute(1000 + kind % 1000, value);
    }
}

/// A strategy for such attributes.
pub fn unknown() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..20)), 0..4)
}
