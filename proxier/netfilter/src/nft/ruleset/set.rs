//! Sets and maps as read from the kernel.

use std::fmt;

use super::elements::{Element, ElementLookup, Elements};
use super::values::{self, Printed};
use crate::nft::{self, Field, Name, Value};

const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
const EVAL: u32 = 0x20;
const ANONYMOUS: u32 = 0x1;

/// A field of a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyField {
    /// nft's type number.
    pub kind: u32,
    /// The length in bytes, without the padding to 4 bytes.
    pub width: usize,
}

/// The bits of each type in the type number of a concatenation.
const TYPE_BITS: u32 = 6;

impl KeyField {
    /// The fields of a key or value of a type and length.
    ///
    /// `widths` are the field lengths, if the kernel reports them.
    #[must_use]
    pub fn all(kind: u32, length: usize, widths: Option<Vec<usize>>) -> Vec<Self> {
        let digits = (0..u32::BITS / TYPE_BITS).rev().map(|at| kind >> (at * TYPE_BITS) & ((1 << TYPE_BITS) - 1));
        let mut kinds: Vec<u32> = digits.skip_while(|kind| *kind == 0).collect();
        let widths = widths.unwrap_or_else(|| match kinds.len() {
            0 | 1 => vec![length],
            _ => kinds.iter().map(|kind| values::width(*kind).unwrap_or(4)).collect(),
        });
        // A type may have more fields than its number has room for.
        let missing = widths.len().saturating_sub(kinds.len());
        kinds.splice(0..0, std::iter::repeat_n(0, missing));
        let parts: Vec<Self> = kinds.into_iter().zip(widths).map(|(kind, width)| Self { kind, width }).collect();
        match parts.iter().map(|part| part.padded()).sum::<usize>() == length.next_multiple_of(4) {
            true => parts,
            false => vec![Self { kind: 0, width: length }],
        }
    }

    /// The length in a concatenation, padded to 4 bytes.
    #[must_use]
    pub fn padded(self) -> usize {
        self.width.next_multiple_of(4)
    }
}

/// A set, or a map if `value` is set.
#[derive(Clone, Debug, Default)]
pub struct Set {
    /// `NFT_SET_*`
    pub flags: u32,
    /// The fields of the keys.
    pub key: Vec<KeyField>,
    /// The fields of the values; empty for verdicts.
    pub value: Option<Vec<KeyField>>,
    /// `size`
    pub size: Option<u32>,
    /// `timeout` in milliseconds; 0 for none.
    pub timeout: u64,
    /// `comment`
    pub comment: Option<Name>,
    /// The elements that were read.
    pub elements: Elements,
}

impl Set {
    /// The set that the kernel creates from a definition, without elements.
    #[must_use]
    pub fn of(set: &nft::Set) -> Self {
        let parts = |fields: &Vec<Field>| {
            fields.iter().map(|field| KeyField { kind: field.type_number(), width: field.width() }).collect()
        };
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        Self {
            flags: flag(set.interval, INTERVAL) | flag(set.value.is_some(), MAP) | flag(set.dynamic, EVAL | TIMEOUT),
            key: parts(&set.key),
            value: set.value.as_ref().map(parts),
            size: set.size,
            timeout: 0,
            comment: set.comment.clone(),
            elements: Elements::default(),
        }
    }

    /// `flags interval`: keys may be intervals.
    #[must_use]
    pub fn is_interval(&self) -> bool {
        self.flags & INTERVAL != 0
    }

    /// Whether it is anonymous: part of one rule, printed as `{ a, b }`.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.flags & ANONYMOUS != 0
    }

    /// Whether it is a map.
    #[must_use]
    pub fn is_map(&self) -> bool {
        self.flags & MAP != 0
    }

    /// `flags dynamic`: rules add elements.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        self.flags & EVAL != 0
    }

    /// The length of a key in bytes.
    #[must_use]
    pub fn key_length(&self) -> usize {
        match &*self.key {
            [only] => only.width,
            parts => parts.iter().map(|part| part.padded()).sum(),
        }
    }

    /// The element that contains a key.
    #[must_use]
    pub fn find(&self, key: &[u8]) -> ElementLookup<'_> {
        let concatenated = self.is_interval() && self.key.len() > 1;
        self.elements.find(key, concatenated.then_some(&self.key))
    }

    /// Splits a key or value into fields.
    pub fn fields<'a>(parts: &'a [KeyField], bytes: &'a [u8]) -> impl Iterator<Item = (KeyField, &'a [u8])> {
        let mut at = 0;
        parts.iter().map(move |part| {
            let field = bytes.get(at..at + part.width).unwrap_or_default();
            at += part.padded();
            (*part, field)
        })
    }

    /// The element in nft syntax.
    #[must_use]
    pub fn text<'a>(&'a self, element: &'a Element) -> impl fmt::Display + 'a {
        Printed { set: self, element }
    }

    /// The key of an element in nft syntax.
    #[must_use]
    pub fn key_text(&self, element: &Element) -> String {
        values::key(&self.key, element)
    }

    /// The value of an element in nft syntax; `None` for sets.
    #[must_use]
    pub fn value_text(&self, element: &Element) -> Option<String> {
        match element.value.as_ref()? {
            Value::Verdict(verdict) => Some(verdict.to_string()),
            Value::Data(bytes) => Some(values::concatenated(self.value.as_deref().unwrap_or_default(), bytes)),
        }
    }
}
