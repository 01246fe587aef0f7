//! Instructions in netlink's form, to and from the kernel.
//!
//! In: instructions, or the attributes that the kernel has for them. Out: the other. Must not know: rules.

use crate::kernel::netlink::{Attributes, Request};
use crate::netfilter::nft::{Expression, Load, Origin, Register, SetOperation, Verdict};

pub(super) const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

const NFT_META_MARK: u32 = 3;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_L4PROTO: u32 = 16;
const NFT_CT_STATE: u32 = 0;
const NFT_CT_STATUS: u32 = 2;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1;
const NFTA_FIB_F_DADDR: u32 = 2;
const NFT_NG_RANDOM: u32 = 1;
const NFT_NAT_DNAT: u32 = 1;
const NFT_REJECT_ICMP_UNREACH: u32 = 0;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 0x10;
const NFT_OBJECT_COUNTER: u32 = 1;
/// `NFT_LOOKUP_F_INV`, `NFT_CMP_NEQ`
const NOT: u32 = 1;
/// `NFT_REG_VERDICT`
const VERDICT: u32 = 0;

const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;

const BY_WIDTH: [(Load, u32); 3] = [(Load::Protocol, 1), (Load::InputName, 16), (Load::Mark, 4)];

/// The kernel numbers registers of four words, and words that begin no such register.
fn number(register: Register) -> u32 {
    let word = u32::from(register.0);
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

fn register(number: u32) -> Option<Register> {
    let word = if (1..=4).contains(&number) { (number - 1) * 4 } else { number.checked_sub(8)? };
    u8::try_from(word).ok().map(Register)
}

trait Numbers {
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

/// Writes an instruction as an item of a list.
pub(super) fn write(list: &mut Request, expression: &Expression) {
    list.nested(NFTA_LIST_ELEM, |item| {
        item.text(NFTA_EXPR_NAME, name(expression));
        item.nested(NFTA_EXPR_DATA, |data| body(data, expression));
    });
}

fn name(expression: &Expression) -> &str {
    match expression {
        Expression::Load { from, .. } => match from {
            Load::Payload(..) => "payload",
            Load::Mark | Load::InputName | Load::Protocol => "meta",
            Load::State | Load::Status => "ct",
            Load::SourceKind | Load::DestinationKind => "fib",
            Load::Random { .. } => "numgen",
        },
        Expression::SetMark { .. } => "meta",
        Expression::Bitwise { .. } => "bitwise",
        Expression::Compare { .. } => "cmp",
        Expression::Lookup { .. } => "lookup",
        Expression::Dynset { .. } => "dynset",
        Expression::Verdict(_) => "immediate",
        Expression::Dnat { .. } => "nat",
        Expression::Masquerade { .. } => "masq",
        Expression::Reject { .. } => "reject",
        Expression::Counter => "counter",
        Expression::NamedCounter(_) => "objref",
        Expression::Unknown(name) => name,
    }
}

/// The attributes of each: `NFTA_BITWISE_SREG` is 1, and so on.
fn body(data: &mut Request, expression: &Expression) {
    match expression {
        Expression::Load { from, width, to } => load(data, *from, *width, *to),
        Expression::SetMark { from } => _ = data.u32(2, NFT_META_MARK).register(3, *from),
        Expression::Bitwise { register, mask, xor } => {
            let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
            data.register(1, *register).register(2, *register).u32(3, length).data(4, mask).data(5, xor);
        }
        Expression::Compare { register, not, value } => {
            data.register(1, *register).u32(2, u32::from(*not)).data(3, value);
        }
        Expression::Lookup { set, key, to, verdict, not } => {
            data.text(1, set).register(2, *key);
            match to {
                Some(to) => _ = data.register(3, *to),
                None if *verdict => _ = data.u32(3, VERDICT),
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
            data.u32(1, VERDICT);
            write_verdict(data, 2, verdict);
        }
        Expression::Dnat { family, address, port } => {
            data.u32(1, NFT_NAT_DNAT).u32(2, u32::from(*family)).register(3, *address).register(5, *port);
        }
        Expression::Masquerade { random: true } => _ = data.u32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY),
        Expression::Masquerade { random: false } | Expression::Counter | Expression::Unknown(_) => {}
        Expression::Reject { code } => _ = data.u32(1, NFT_REJECT_ICMP_UNREACH).attribute(2, &[*code]),
        Expression::NamedCounter(name) => _ = data.u32(1, NFT_OBJECT_COUNTER).text(2, name),
    }
}

fn load(data: &mut Request, from: Load, width: u32, to: Register) {
    data.register(1, to);
    match from {
        Load::Payload(origin, offset) => {
            let base = match origin {
                Origin::Network => 1,
                Origin::Transport => 2,
            };
            data.u32(2, base).u32(3, offset).u32(4, width);
        }
        Load::Mark => _ = data.u32(2, NFT_META_MARK),
        Load::InputName => _ = data.u32(2, NFT_META_IIFNAME),
        Load::Protocol => _ = data.u32(2, NFT_META_L4PROTO),
        Load::State => _ = data.u32(2, NFT_CT_STATE),
        Load::Status => _ = data.u32(2, NFT_CT_STATUS),
        Load::SourceKind => _ = data.u32(2, NFT_FIB_RESULT_ADDRTYPE).u32(3, NFTA_FIB_F_SADDR),
        Load::DestinationKind => _ = data.u32(2, NFT_FIB_RESULT_ADDRTYPE).u32(3, NFTA_FIB_F_DADDR),
        Load::Random { modulus, offset } => {
            data.u32(2, modulus).u32(3, NFT_NG_RANDOM).u32(4, offset);
        }
    }
}

/// Writes a verdict as data.
pub(super) fn write_verdict(out: &mut Request, kind: u16, verdict: &Verdict) {
    let code = match verdict {
        Verdict::Drop => NF_DROP,
        Verdict::Accept => NF_ACCEPT,
        Verdict::Jump(_) => NFT_JUMP,
        Verdict::Goto(_) => NFT_GOTO,
        Verdict::Return => NFT_RETURN,
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

/// Reads data that is a verdict.
pub(super) fn read_verdict(data: Attributes<'_>) -> Option<Verdict> {
    let verdict = data.nest(NFTA_DATA_VERDICT)?;
    let chain = || verdict.find(NFTA_VERDICT_CHAIN).and_then(text).map(Into::into);
    match i32::from_be_bytes(verdict.find_array(NFTA_VERDICT_CODE)?) {
        NF_DROP => Some(Verdict::Drop),
        NF_ACCEPT => Some(Verdict::Accept),
        NFT_RETURN => Some(Verdict::Return),
        NFT_JUMP => Some(Verdict::Jump(chain()?)),
        NFT_GOTO => Some(Verdict::Goto(chain()?)),
        _ => None,
    }
}

/// Reads data that is a value.
pub(super) fn read_value(data: Attributes<'_>) -> Option<&[u8]> {
    data.find(NFTA_DATA_VALUE)
}

/// A text, which ends with a zero byte.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches('\0'))
}

/// Reads a list of instructions. Those that are not ours are so many unknown ones.
pub(super) fn read_list(list: Attributes<'_>) -> Vec<Expression> {
    list.filter(|(kind, _)| *kind == NFTA_LIST_ELEM).map(|(_, item)| read(Attributes::new(item))).collect()
}

fn read(item: Attributes<'_>) -> Expression {
    let name = item.find(NFTA_EXPR_NAME).and_then(text).unwrap_or_default();
    let data = item.nest(NFTA_EXPR_DATA).unwrap_or(Attributes::new(&[]));
    read_body(name, data).unwrap_or_else(|| Expression::Unknown(name.to_owned()))
}

fn read_body(name: &str, data: Attributes<'_>) -> Option<Expression> {
    let u32 = |kind| data.find_array(kind).map(u32::from_be_bytes);
    let place = |kind| u32(kind).and_then(register);
    let bytes = |kind| data.nest(kind).and_then(read_value).map(<[u8]>::to_vec);
    let name_at = |kind| data.find(kind).and_then(text);
    Some(match name {
        "meta" if u32(1).is_none() => {
            let from = place(3).filter(|_| u32(2) == Some(NFT_META_MARK))?;
            Expression::SetMark { from }
        }
        "payload" | "meta" | "ct" | "fib" | "numgen" => {
            let from = read_load(name, u32)?;
            let by_kind = BY_WIDTH.iter().find(|(load, _)| *load == from).map_or(4, |(_, width)| *width);
            let width = if name == "payload" { u32(4)? } else { by_kind };
            Expression::Load { from, width, to: place(1)? }
        }
        "bitwise" => {
            let register = place(1).filter(|from| place(2) == Some(*from) && u32(6).unwrap_or(0) == 0)?;
            Expression::Bitwise { register, mask: bytes(4)?, xor: bytes(5)? }
        }
        "cmp" => {
            let not = u32(2).filter(|operation| *operation <= NOT)? == NOT;
            Expression::Compare { register: place(1)?, not, value: bytes(3)? }
        }
        "lookup" => Expression::Lookup {
            set: name_at(1)?.into(),
            key: place(2)?,
            to: u32(3).and_then(register),
            verdict: u32(3) == Some(VERDICT),
            not: u32(5).unwrap_or(0) & NOT != 0,
        },
        "dynset" => {
            let operation = [SetOperation::Add, SetOperation::Update, SetOperation::Delete];
            let operation = operation.into_iter().find(|operation| u32(3) == Some(*operation as u32))?;
            let timeout = data.find_array(6).map_or(0, u64::from_be_bytes);
            Expression::Dynset { set: name_at(1)?.into(), operation, key: place(4)?, timeout }
        }
        "immediate" if u32(1) == Some(VERDICT) => Expression::Verdict(read_verdict(data.nest(2)?)?),
        "nat" if u32(1) == Some(NFT_NAT_DNAT) && u32(7).unwrap_or(0) & !3 == 0 => {
            let family = u8::try_from(u32(2)?).ok()?;
            Expression::Dnat { family, address: place(3)?, port: place(5)? }
        }
        "masq" => match u32(1).unwrap_or(0) {
            0 => Expression::Masquerade { random: false },
            NF_NAT_RANGE_PROTO_RANDOM_FULLY => Expression::Masquerade { random: true },
            _ => return None,
        },
        "reject" if u32(1) == Some(NFT_REJECT_ICMP_UNREACH) => {
            let [code] = data.find_array(2)?;
            Expression::Reject { code }
        }
        "counter" => Expression::Counter,
        "objref" if u32(1) == Some(NFT_OBJECT_COUNTER) => Expression::NamedCounter(name_at(2)?.into()),
        _ => return None,
    })
}

fn read_load(name: &str, u32: impl Fn(u16) -> Option<u32>) -> Option<Load> {
    Some(match (name, u32(2)?) {
        ("payload", 1) => Load::Payload(Origin::Network, u32(3)?),
        ("payload", 2) => Load::Payload(Origin::Transport, u32(3)?),
        ("meta", NFT_META_MARK) => Load::Mark,
        ("meta", NFT_META_IIFNAME) => Load::InputName,
        ("meta", NFT_META_L4PROTO) => Load::Protocol,
        ("ct", NFT_CT_STATE) => Load::State,
        ("ct", NFT_CT_STATUS) => Load::Status,
        ("fib", NFT_FIB_RESULT_ADDRTYPE) => match u32(3)? {
            NFTA_FIB_F_SADDR => Load::SourceKind,
            NFTA_FIB_F_DADDR => Load::DestinationKind,
            _ => return None,
        },
        ("numgen", modulus) if u32(3) == Some(NFT_NG_RANDOM) => Load::Random { modulus, offset: u32(4).unwrap_or(0) },
        _ => return None,
    })
}

#[cfg(test)]
#[path = "expression_tests.rs"]
mod tests;
