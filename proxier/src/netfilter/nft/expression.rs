//! The kernel's instructions (`nft --debug=netlink` prints them in these words).
//!
//! In: what statements are made of. Out: values that can be written to the kernel and compared with what it holds.
//! Must not know: numbers of attributes, or why a packet is looked at.

use super::Name;
use super::field::Load;
use super::rule::Verdict;

/// Where instructions leave values for later ones: a word, counted from the first. Verdicts have a place of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register(pub u8);

/// What a rule does to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetOperation {
    /// `add`: nothing if it is there.
    Add,
    /// `update`: if it is there, its time begins anew.
    Update,
    /// `delete`
    Delete,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expression {
    /// Loads a field of the packet.
    Load {
        /// Where from.
        from: Load,
        /// How many bytes, where that can be said.
        width: u32,
        /// Where to.
        to: Register,
    },
    /// `meta mark set`
    SetMark {
        /// The value.
        from: Register,
    },
    /// `(value & mask) ^ xor`, in place.
    Bitwise {
        /// The value.
        register: Register,
        /// As long as the value.
        mask: Vec<u8>,
        /// As long as the value.
        xor: Vec<u8>,
    },
    /// Goes on only if the value is equal, or not.
    Compare {
        /// The value.
        register: Register,
        /// `!=`
        not: bool,
        /// What it is compared with.
        value: Vec<u8>,
    },
    /// Goes on only if the key is in a set, or not; of a map, its value is loaded, or its verdict taken.
    Lookup {
        /// The set or map.
        set: Name,
        /// The key.
        key: Register,
        /// Where to load the value; a verdict map has none.
        to: Option<Register>,
        /// Whether a verdict is taken.
        verdict: bool,
        /// `!=`
        not: bool,
    },
    /// Changes a set.
    Dynset {
        /// The set.
        set: Name,
        /// How.
        operation: SetOperation,
        /// The key.
        key: Register,
        /// Milliseconds; 0 where the set's own holds.
        timeout: u64,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// `dnat`
    Dnat {
        /// `NFPROTO_*`
        family: u8,
        /// The address.
        address: Register,
        /// The port.
        port: Register,
    },
    /// `masquerade`
    Masquerade {
        /// `fully-random`
        random: bool,
    },
    /// `reject` with an ICMP error.
    Reject {
        /// The code that says "port unreachable".
        code: u8,
    },
    /// `counter`
    Counter,
    /// `counter name`
    NamedCounter(Name),
    /// Anything that is not ours.
    Unknown(String),
}
