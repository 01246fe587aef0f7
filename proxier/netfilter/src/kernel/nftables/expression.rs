//! Encodes and decodes nf_tables expressions.

use super::load;
use super::uapi::*;
use crate::Counters;
use crate::kernel::netlink::{Attributes, Request};
use crate::nft::{Comparison, Expression, Register, Registers, SetOperation, Translation, Verdict};

/// `NFT_LOOKUP_F_INV`, `NFT_CMP_NEQ`
const NOT: u32 = 1;

/// `NFT_BITWISE_LSHIFT` and `_RSHIFT`
const SHIFTS: [(u32, bool); 2] = [(1, false), (2, true)];
/// `NF_NAT_RANGE_PROTO_SPECIFIED` and `NF_NAT_RANGE_MAP_IPS`, which the kernel derives from the registers.
const NF_NAT_RANGE_GIVEN: u32 = 3;
/// The expressions that do not affect a packet's verdict.
pub(super) const PASSIVE: [&str; 3] = ["log", "last", "flow_offload"];

/// The kernel's number of a register: 16-byte registers, or 4-byte ones that are not at such a boundary.
fn number(register: Register) -> u32 {
    let word = u32::from(register.0);
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

fn register(number: u32) -> Option<Register> {
    // `NFT_REG32_00` to `NFT_REG32_15`
    let word = match number {
        1..=4 => (number - 1) * 4,
        8..=23 => number - 8,
        _ => return None,
    };
    u8::try_from(word).ok().map(Register)
}

pub(super) trait Numbers {
    fn u32(&mut self, kind: u16, number: u32) -> &mut Self;
    fn register(&mut self, kind: u16, register: Register) -> &mut Self;
    fn data(&mut self, kind: u16, value: &[u8]) -> &mut Self;
}

impl Numbers for Request {
    fn u32(&mut self, kind: u16, number: u32) -> &mut Self {
        self.attribute(kind, &number.to_be_bytes())
    }

    fn register(&mut self, kind: u16, register: Register) -> &mut Self {
        self.u32(kind, number(register))
    }

    fn data(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nested(kind, |data| _ = data.attribute(NFTA_DATA_VALUE, value))
    }
}

/// Encodes an expression as a list item.
pub(super) fn write(list: &mut Request, expression: &Expression) {
    list.nested(NFTA_LIST_ELEM, |item| {
        item.text(NFTA_EXPR_NAME, name(expression));
        item.nested(NFTA_EXPR_DATA, |data| body(data, expression));
    });
}

fn name(expression: &Expression) -> &str {
    match expression {
        Expression::Load { from, .. } => load::name(*from),
        Expression::SetMark { .. } => "meta",
        Expression::SetConnectionMark { .. } => "ct",
        Expression::SetOther { of, .. } => of,
        Expression::Bitwise { .. } | Expression::Shift { .. } => "bitwise",
        Expression::ByteOrder { .. } => "byteorder",
        Expression::Compare { .. } | Expression::CompareOrder { .. } => "cmp",
        Expression::Range { .. } => "range",
        Expression::Hash { .. } => "hash",
        Expression::Lookup { .. } => "lookup",
        Expression::Dynset { .. } => "dynset",
        Expression::Verdict(_) | Expression::Immediate { .. } => "immediate",
        Expression::Dnat { .. } => "nat",
        Expression::Translate { kind, .. } => match kind {
            Translation::Source | Translation::Destination => "nat",
            Translation::Redirect => "redir",
            Translation::Masquerade => "masq",
        },
        Expression::Masquerade { .. } => "masq",
        Expression::Reject { .. } | Expression::RejectWith { .. } => "reject",
        Expression::NoTrack => "notrack",
        Expression::Passive(name) => name,
        Expression::Counter => "counter",
        Expression::NamedCounter(_) => "objref",
        Expression::Unknown(name) => name,
    }
}

/// Encodes the attributes of an expression; for example, `NFTA_BITWISE_SREG` is 1.
fn body(data: &mut Request, expression: &Expression) {
    match expression {
        Expression::Load { from, width, to } => load::write(data, *from, *width, *to),
        Expression::SetMark { from } => _ = data.u32(2, NFT_META_MARK).register(3, *from),
        Expression::Bitwise { register, mask, xor } => {
            let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
            data.register(1, *register).register(2, *register).u32(3, length).data(4, mask).data(5, xor);
        }
        Expression::SetConnectionMark { from } => _ = data.u32(2, NFT_CT_MARK).register(4, *from),
        Expression::SetOther { of, key, from } => {
            data.u32(2, *key).register(if *of == "ct" { 4 } else { 3 }, *from);
        }
        Expression::Immediate { to, value } => _ = data.register(1, *to).data(2, value),
        Expression::Shift { register, length, right, bits } => {
            let operation = SHIFTS.iter().find(|(_, known)| known == right).map_or(0, |(number, _)| *number);
            data.register(1, *register).register(2, *register).u32(3, *length).u32(6, operation);
            data.data(7, &bits.to_ne_bytes());
        }
        Expression::ByteOrder { register, length, size, to_network } => {
            data.register(1, *register).register(2, *register).u32(3, u32::from(*to_network));
            data.u32(4, *length).u32(5, *size);
        }
        Expression::CompareOrder { register, order, value } => {
            data.register(1, *register).u32(2, *order as u32).data(3, value);
        }
        Expression::Range { register, not, from, to } => {
            data.register(1, *register).u32(2, u32::from(*not)).data(3, from).data(4, to);
        }
        Expression::Hash { of, to, modulus, seed, offset } => {
            if let Some((register, length)) = of {
                data.register(1, *register).u32(3, *length);
            }
            if let Some(seed) = seed {
                data.u32(5, *seed);
            }
            data.register(2, *to).u32(4, *modulus).u32(6, *offset).u32(7, u32::from(of.is_none()));
        }
        Expression::Compare { register, not, value } => {
            data.register(1, *register).u32(2, u32::from(*not)).data(3, value);
        }
        Expression::Lookup { set, key, to, verdict, not } => {
            data.text(1, set).register(2, *key);
            match to {
                Some(to) => _ = data.register(3, *to),
                None if *verdict => _ = data.u32(3, NFT_REG_VERDICT),
                None => {}
            }
            if *not {
                data.u32(5, NOT);
            }
        }
        Expression::Dynset { set, operation, key, timeout } => {
            data.text(1, set).u32(3, *operation as u32).register(4, *key);
            if *timeout > 0 {
                data.attribute(6, &timeout.to_be_bytes());
            }
        }
        Expression::Verdict(verdict) => {
            data.u32(1, NFT_REG_VERDICT);
            write_verdict(data, 2, verdict);
        }
        Expression::Dnat { family, address, port } => {
            data.u32(1, NFT_NAT_DNAT).u32(2, u32::from(*family)).register(3, *address).register(5, *port);
        }
        Expression::Masquerade { random: true } => _ = data.u32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY),
        Expression::Translate { kind, family, address, port, flags } => {
            translation(data, *kind, *family, [*address, *port], *flags);
        }
        Expression::RejectWith { kind, code } => _ = data.u32(1, *kind).attribute(2, &[*code]),
        Expression::Masquerade { random: false }
        | Expression::NoTrack
        | Expression::Passive(_)
        | Expression::Counter
        | Expression::Unknown(_) => {}
        Expression::Reject { code } => _ = data.u32(1, NFT_REJECT_ICMP_UNREACH).attribute(2, &[*code]),
        Expression::NamedCounter(name) => _ = data.u32(1, NFT_OBJECT_COUNTER).text(2, name),
    }
}

/// The attribute types of port registers and flags in `nat`, `redir` and `masq`.
fn translation_attributes(kind: Translation) -> ([u16; 2], u16) {
    match kind {
        Translation::Source | Translation::Destination => ([5, 6], 7),
        Translation::Redirect => ([1, 2], 3),
        Translation::Masquerade => ([2, 3], 1),
    }
}

fn translation(data: &mut Request, kind: Translation, family: u8, [address, port]: [Option<Registers>; 2], flags: u32) {
    let (ports, flags_at) = translation_attributes(kind);
    if matches!(kind, Translation::Source | Translation::Destination) {
        let number = if kind == Translation::Source { NFT_NAT_SNAT } else { NFT_NAT_DNAT };
        data.u32(1, number).u32(2, u32::from(family));
        if let Some((from, to)) = address {
            data.register(3, from).register(4, to);
        }
    }
    if let Some((from, to)) = port {
        data.register(ports[0], from).register(ports[1], to);
    }
    if flags != 0 {
        data.u32(flags_at, flags);
    }
}

/// Encodes a verdict as data.
pub(super) fn write_verdict(out: &mut Request, kind: u16, verdict: &Verdict) {
    let code = match verdict {
        Verdict::Drop => NF_DROP,
        Verdict::Accept => NF_ACCEPT,
        Verdict::Jump(_) => NFT_JUMP,
        Verdict::Goto(_) => NFT_GOTO,
        Verdict::Return => NFT_RETURN,
        Verdict::Continue => NFT_CONTINUE,
    };
    out.nested(kind, |data| {
        data.nested(NFTA_DATA_VERDICT, |data| {
            data.attribute(NFTA_VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = verdict.chain() {
                data.text(NFTA_VERDICT_CHAIN, chain);
            }
        });
    });
}

/// Decodes data as a verdict.
pub(super) fn read_verdict(data: Attributes<'_>) -> Option<Verdict> {
    let verdict = data.nest(NFTA_DATA_VERDICT)?;
    let chain = || verdict.text(NFTA_VERDICT_CHAIN).map(Into::into);
    match i32::from_be_bytes(verdict.find_array(NFTA_VERDICT_CODE)?) {
        NF_DROP => Some(Verdict::Drop),
        NF_ACCEPT => Some(Verdict::Accept),
        NFT_RETURN => Some(Verdict::Return),
        NFT_CONTINUE => Some(Verdict::Continue),
        NFT_JUMP => Some(Verdict::Jump(chain()?)),
        NFT_GOTO => Some(Verdict::Goto(chain()?)),
        _ => None,
    }
}

/// Decodes data as a value.
pub(super) fn read_value(data: Attributes<'_>) -> Option<&[u8]> {
    data.find(NFTA_DATA_VALUE)
}

/// Decodes a list of expressions; unsupported ones become [`Expression::Unknown`].
pub(super) fn read_list(list: Attributes<'_>) -> Vec<Expression> {
    list.filter(|(kind, _)| *kind == NFTA_LIST_ELEM).map(|(_, item)| read(Attributes::new(item))).collect()
}

fn read(item: Attributes<'_>) -> Expression {
    let name = item.text(NFTA_EXPR_NAME).unwrap_or_default();
    let data = item.nest(NFTA_EXPR_DATA).unwrap_or(Attributes::new(&[]));
    read_body(name, data).unwrap_or_else(|| Expression::Unknown(name.to_owned()))
}

/// Encodes the `counter` that every element of a set gets.
pub(super) fn write_counter(item: &mut Request) {
    item.text(NFTA_EXPR_NAME, "counter").nested(NFTA_EXPR_DATA, |_| ());
}

/// Whether an expression is a `counter`.
pub(super) fn is_counter(item: Attributes<'_>) -> bool {
    item.text(NFTA_EXPR_NAME) == Some("counter")
}

/// The counters of a rule's `counter` expression.
pub(super) fn counters(list: Attributes<'_>) -> Option<Counters> {
    let mut items = list.filter(|(kind, _)| *kind == NFTA_LIST_ELEM).map(|(_, item)| Attributes::new(item));
    let counter = items.find(|item| is_counter(*item))?;
    counter_of(counter)
}

/// The counters of a `counter` expression: `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`.
pub(super) fn counter_of(item: Attributes<'_>) -> Option<Counters> {
    let data = item.nest(NFTA_EXPR_DATA)?;
    let number = |kind| data.be64(kind);
    Some(Counters { bytes: number(1)?, packets: number(2)? })
}

/// The attributes of an expression.
#[derive(Clone, Copy)]
struct Body<'a>(Attributes<'a>);

impl<'a> Body<'a> {
    fn u32(self, kind: u16) -> Option<u32> {
        self.0.be32(kind)
    }

    fn place(self, kind: u16) -> Option<Register> {
        self.u32(kind).and_then(register)
    }

    fn bytes(self, kind: u16) -> Option<Vec<u8>> {
        self.0.nest(kind).and_then(read_value).map(<[u8]>::to_vec)
    }

    fn name(self, kind: u16) -> Option<&'a str> {
        self.0.text(kind)
    }

    /// Two registers; a missing second one equals the first.
    fn places(self, [from, to]: [u16; 2]) -> Option<Registers> {
        let from = self.place(from)?;
        Some((from, self.place(to).unwrap_or(from)))
    }
}

fn read_body(name: &str, data: Attributes<'_>) -> Option<Expression> {
    let body = Body(data);
    let u32 = |kind| body.u32(kind);
    Some(match name {
        "meta" if u32(1).is_none() => match (u32(2)?, body.place(3)?) {
            (NFT_META_MARK, from) => Expression::SetMark { from },
            (key, from) => Expression::SetOther { of: "meta", key, from },
        },
        "ct" if u32(1).is_none() => match (u32(2)?, body.place(4)?) {
            (NFT_CT_MARK, from) => Expression::SetConnectionMark { from },
            (key, from) => Expression::SetOther { of: "ct", key, from },
        },
        "payload" | "meta" | "ct" | "fib" | "numgen" => {
            let from = load::read(name, u32, data.find_array(3).map(|[direction]| direction))?;
            let width = if name == "payload" { u32(4)? } else { load::width(from) };
            Expression::Load { from, width, to: body.place(1)? }
        }
        "bitwise" | "byteorder" | "cmp" | "range" | "hash" => return read_arithmetic(name, body),
        "lookup" => Expression::Lookup {
            set: body.name(1)?.into(),
            key: body.place(2)?,
            to: u32(3).and_then(register),
            verdict: u32(3) == Some(NFT_REG_VERDICT),
            not: u32(5).unwrap_or(0) & NOT != 0,
        },
        "dynset" => return read_dynset(body),
        "immediate" if u32(1) == Some(NFT_REG_VERDICT) => Expression::Verdict(read_verdict(data.nest(2)?)?),
        "immediate" => Expression::Immediate { to: body.place(1)?, value: body.bytes(2)? },
        "nat" | "redir" | "masq" => return read_translation(name, body),
        "reject" => match (u32(1)?, data.find_array(2)) {
            (NFT_REJECT_ICMP_UNREACH, code) => Expression::Reject { code: code?[0] },
            (kind, code) => Expression::RejectWith { kind, code: code.map_or(0, |[code]| code) },
        },
        "notrack" => Expression::NoTrack,
        "counter" => Expression::Counter,
        "objref" if u32(1) == Some(NFT_OBJECT_COUNTER) => Expression::NamedCounter(body.name(2)?.into()),
        name => Expression::Passive(PASSIVE.into_iter().find(|known| *known == name)?),
    })
}

/// Decodes expressions that compute or compare.
fn read_arithmetic(name: &str, body: Body<'_>) -> Option<Expression> {
    // The kernel supports another destination register, but nft always works in place.
    let in_place = || body.place(1).filter(|from| body.place(2) == Some(*from));
    Some(match (name, body.u32(6).unwrap_or(0)) {
        ("bitwise", 0) => Expression::Bitwise { register: in_place()?, mask: body.bytes(4)?, xor: body.bytes(5)? },
        ("bitwise", operation) => {
            let (_, right) = SHIFTS.into_iter().find(|(number, _)| *number == operation)?;
            let bits = body.bytes(7)?.try_into().ok().map(u32::from_ne_bytes)?;
            Expression::Shift { register: in_place()?, length: body.u32(3)?, right, bits }
        }
        ("byteorder", _) => Expression::ByteOrder {
            register: in_place()?,
            length: body.u32(4)?,
            size: body.u32(5)?,
            to_network: body.u32(3)? == 1,
        },
        ("cmp", _) => match (body.u32(2)?, body.place(1)?, body.bytes(3)?) {
            (operation @ 0..=NOT, register, value) => Expression::Compare { register, not: operation == NOT, value },
            (operation, register, value) => {
                let order = Comparison::ALL.into_iter().find(|order| *order as u32 == operation)?;
                Expression::CompareOrder { register, order, value }
            }
        },
        ("range", _) => {
            let not = body.u32(2).filter(|operation| *operation <= NOT)? == NOT;
            Expression::Range { register: body.place(1)?, not, from: body.bytes(3)?, to: body.bytes(4)? }
        }
        ("hash", offset) => Expression::Hash {
            of: match body.u32(7).unwrap_or(0) {
                0 => Some((body.place(1)?, body.u32(3)?)),
                _ => None,
            },
            to: body.place(2)?,
            modulus: body.u32(4)?,
            seed: body.u32(5),
            offset,
        },
        _ => return None,
    })
}

/// Decodes `NFTA_DYNSET_*`. Expressions in elements are `NFTA_DYNSET_EXPR` and `NFTA_DYNSET_EXPRESSIONS`.
fn read_dynset(body: Body<'_>) -> Option<Expression> {
    let operation = [SetOperation::Add, SetOperation::Update, SetOperation::Delete];
    let operation = operation.into_iter().find(|operation| body.u32(3) == Some(*operation as u32))?;
    let limits = body.0.nest(7).is_some_and(|item| !is_counter(item))
        || body.0.nest(10).is_some_and(|mut list| list.any(|(_, item)| !is_counter(Attributes::new(item))));
    if limits || body.u32(5).is_some() {
        return None;
    }
    let timeout = body.0.be64(6).unwrap_or(0);
    Some(Expression::Dynset { set: body.name(1)?.into(), operation, key: body.place(4)?, timeout })
}

fn read_translation(name: &str, body: Body<'_>) -> Option<Expression> {
    let kind = match (name, body.u32(1)) {
        ("nat", Some(NFT_NAT_SNAT)) => Translation::Source,
        ("nat", Some(NFT_NAT_DNAT)) => Translation::Destination,
        ("redir", _) => Translation::Redirect,
        ("masq", _) => Translation::Masquerade,
        _ => return None,
    };
    let (ports, flags_at) = translation_attributes(kind);
    let (is_nat, flags) = (name == "nat", body.u32(flags_at).unwrap_or(0));
    let family = if is_nat { u8::try_from(body.u32(2)?).ok()? } else { 0 };
    let address = if is_nat { body.places([3, 4]) } else { None };
    let port = body.places(ports);
    let flags = if is_nat { flags & !NF_NAT_RANGE_GIVEN } else { flags };
    Some(match (kind, address, port, flags) {
        (Translation::Destination, Some((address, last)), Some((port, last_port)), 0)
            if address == last && port == last_port =>
        {
            Expression::Dnat { family, address, port }
        }
        (Translation::Masquerade, _, None, 0) => Expression::Masquerade { random: false },
        (Translation::Masquerade, _, None, NF_NAT_RANGE_PROTO_RANDOM_FULLY) => Expression::Masquerade { random: true },
        _ => Expression::Translate { kind, family, address, port, flags },
    })
}

#[cfg(test)]
#[path = "expression_tests.rs"]
mod tests;
