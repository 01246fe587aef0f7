//! Rules and statements, each with its nft syntax and its expressions.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::expression::{Expression, Register, SetOperation};
use super::field::{Field, Fields, Load};
use super::{Name, Quoted};
use crate::IpFamily;

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `return`
    Return,
    /// `jump CHAIN`: evaluation returns to the next rule.
    Jump(Name),
    /// `goto CHAIN`: evaluation returns to the calling chain.
    Goto(Name),
    /// `continue`: the next rule; in a map, the value of keys without effect.
    Continue,
}

impl Verdict {
    /// The chain of a jump or goto.
    #[must_use]
    pub fn chain(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return | Self::Continue => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Continue => f.write_str("continue"),
        }
    }
}

/// Selects the source or destination address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// The source address.
    Source,
    /// The destination address.
    Destination,
}

/// A statement of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// `ip saddr 10.0.0.0/8`
    AddressIn {
        /// The address.
        address: Address,
        /// `!=`
        not: bool,
        /// The network.
        net: IpNet,
    },
    /// `iifname "eth0"`, or with `prefix` `iifname "veth*"`
    InputInterface {
        /// The interface name, or its prefix.
        name: String,
        /// Whether the name is a prefix.
        prefix: bool,
        /// `!=`
        not: bool,
    },
    /// `fib saddr type local`
    AddressIsLocal(Address),
    /// `ct state new`
    CtStateNew,
    /// `ct state != new`: with one operation less than [`CtStateNew`](Self::CtStateNew)
    CtStateNotNew,
    /// `ct status dnat`
    CtStatusDnat,
    /// `meta mark & V != 0`
    HasMark(u32),
    /// `meta mark set meta mark | V`
    SetMark(u32),
    /// `meta mark set meta mark ^ V`
    FlipMark(u32),
    /// `FIELDS @set`
    Lookup {
        /// The key.
        key: Vec<Field>,
        /// The set.
        set: Name,
        /// `!=`
        not: bool,
    },
    /// `FIELDS vmap @map`
    VerdictMap {
        /// The key.
        key: Vec<Field>,
        /// The map.
        map: Name,
    },
    /// `update @set { FIELDS timeout T }`, likewise `add` and `delete`.
    UpdateSet {
        /// The operation.
        operation: SetOperation,
        /// The set.
        set: Name,
        /// The key.
        key: Vec<Field>,
        /// The timeout in seconds.
        timeout: Option<u32>,
    },
    /// `dnat ip to FIELDS map @map`. The map's values are addresses and ports.
    Dnat {
        /// The family.
        family: IpFamily,
        /// The key.
        key: Vec<Field>,
        /// The map.
        map: Name,
    },
    /// `masquerade fully-random`
    Masquerade {
        /// `fully-random`
        random: bool,
    },
    /// `reject` with ICMP port unreachable.
    Reject(IpFamily),
    /// `counter`
    Counter,
    /// `counter name "NAME"`
    NamedCounter(Name),
    /// A verdict statement.
    Verdict(Verdict),
}

/// `RTN_LOCAL`
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`
const TRANSLATED: u32 = 0x20;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`
const NEW: u32 = 8;

impl Statement {
    /// Appends the kernel's expressions.
    pub fn expressions(&self, out: &mut Vec<Expression>) {
        let load = |from| Expression::Load { from, width: 4, to: FIRST };
        let bits = |mask: u32, xor: u32| Expression::Bitwise {
            register: FIRST,
            mask: mask.to_ne_bytes().to_vec(),
            xor: xor.to_ne_bytes().to_vec(),
        };
        match self {
            Self::AddressIn { address, not, net } => address_in(*address, *not, net, out),
            Self::InputInterface { name, prefix, not } => input_interface(name, *prefix, *not, out),
            Self::AddressIsLocal(address) => {
                load_key(&[address.kind()], out);
                out.push(compare(false, LOCAL.to_ne_bytes().to_vec()));
            }
            Self::CtStateNew => out.extend([load(Load::CtState), bits(NEW, 0), compare(true, vec![0; 4])]),
            // A packet has exactly one state.
            Self::CtStateNotNew => out.extend([load(Load::CtState), compare(true, NEW.to_ne_bytes().to_vec())]),
            Self::CtStatusDnat => out.extend([load(Load::CtStatus), bits(TRANSLATED, 0), compare(true, vec![0; 4])]),
            Self::HasMark(mark) => out.extend([load(Load::Mark), bits(*mark, 0), compare(true, vec![0; 4])]),
            Self::SetMark(mark) => {
                out.extend([load(Load::Mark), bits(!mark, *mark), Expression::SetMark { from: FIRST }]);
            }
            Self::FlipMark(mark) => {
                out.extend([load(Load::Mark), bits(!0, *mark), Expression::SetMark { from: FIRST }]);
            }
            Self::Lookup { key, set, not } => {
                load_key(key, out);
                out.push(Expression::Lookup { set: set.clone(), key: FIRST, to: None, verdict: false, not: *not });
            }
            Self::VerdictMap { key, map } => {
                load_key(key, out);
                out.push(Expression::Lookup { set: map.clone(), key: FIRST, to: None, verdict: true, not: false });
            }
            Self::UpdateSet { operation, set, key, timeout } => {
                load_key(key, out);
                let timeout = u64::from(timeout.unwrap_or(0)) * 1000;
                out.push(Expression::Dynset { set: set.clone(), operation: *operation, key: FIRST, timeout });
            }
            Self::Dnat { family, key, map } => {
                load_key(key, out);
                let (set, to) = (map.clone(), Some(FIRST));
                out.push(Expression::Lookup { set, key: FIRST, to, verdict: false, not: false });
                let port = Register(words(Field::Destination(*family)));
                out.push(Expression::Dnat { family: family.nfproto(), address: FIRST, port });
            }
            Self::Masquerade { random } => out.push(Expression::Masquerade { random: *random }),
            Self::Reject(family) => out.push(Expression::Reject { code: family.port_unreachable() }),
            Self::Counter => out.push(Expression::Counter),
            Self::NamedCounter(name) => out.push(Expression::NamedCounter(name.clone())),
            Self::Verdict(verdict) => out.push(Expression::Verdict(verdict.clone())),
        }
    }
}

/// The first register, which keys are loaded to.
const FIRST: Register = Register(0);

fn compare(not: bool, value: Vec<u8>) -> Expression {
    Expression::Compare { register: FIRST, not, value }
}

fn address_in(address: Address, not: bool, net: &IpNet, out: &mut Vec<Expression>) {
    let field = address.field(IpFamily::of_net(net));
    load_key(&[field], out);
    if net.prefix_len() != net.max_prefix_len() {
        let (mask, xor) = (octets(net.netmask()), vec![0; field.width()]);
        out.push(Expression::Bitwise { register: FIRST, mask, xor });
    }
    out.push(compare(not, octets(net.network())));
}

/// Compares the name of the input link: the whole field, or the bytes of a prefix.
fn input_interface(name: &str, prefix: bool, not: bool, out: &mut Vec<Expression>) {
    load_key(&[Field::Input], out);
    let mut value = name.as_bytes().to_vec();
    if !prefix {
        value.resize(Field::Input.width(), 0);
    }
    out.push(compare(not, value));
}

fn words(field: Field) -> u8 {
    u8::try_from(field.padded() / 4).unwrap_or(u8::MAX)
}

/// Loads the fields of a key into consecutive registers, each padded to 4 bytes.
fn load_key(key: &[Field], out: &mut Vec<Expression>) {
    load_from(0, key, key.iter().copied().map(words).sum(), out);
}

/// The same from a register on; `free` is the first register that a hash may use for its input, as nft allocates them.
fn load_from(first: u8, key: &[Field], free: u8, out: &mut Vec<Expression>) {
    let mut at = first;
    for field in key {
        let width = u32::try_from(field.width()).unwrap_or(u32::MAX);
        match (*field, field.load()) {
            (_, Some(from)) => out.push(Expression::Load { from, width, to: Register(at) }),
            (Field::Hash { of, modulus, seed }, None) => {
                let fields = of.fields();
                load_from(free, &fields, free, out);
                let length = fields.iter().map(|field| field.padded()).sum::<usize>();
                let of = Some((Register(free), u32::try_from(length).unwrap_or(u32::MAX)));
                out.push(Expression::Hash { of, to: Register(at), modulus, seed: Some(seed), offset: 0 });
            }
            (_, None) => {}
        }
        at += words(*field);
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Address {
    fn field(self, family: IpFamily) -> Field {
        match self {
            Self::Source => Field::Source(family),
            Self::Destination => Field::Destination(family),
        }
    }

    fn kind(self) -> Field {
        match self {
            Self::Source => Field::SourceType,
            Self::Destination => Field::DestinationType,
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |not: &bool| if *not { "!= " } else { "" };
        match self {
            Self::AddressIn { address, not: n, net } => {
                write!(f, "{} {}", address.field(IpFamily::of_net(net)), not(n))?;
                if net.prefix_len() == net.max_prefix_len() { write!(f, "{}", net.addr()) } else { write!(f, "{net}") }
            }
            Self::InputInterface { name, prefix, not: n } => {
                write!(f, "{} {}\"{name}{}\"", Field::Input, not(n), if *prefix { "*" } else { "" })
            }
            Self::AddressIsLocal(address) => write!(f, "{} local", address.kind()),
            Self::CtStateNew => f.write_str("ct state new"),
            Self::CtStateNotNew => f.write_str("ct state != new"),
            Self::CtStatusDnat => f.write_str("ct status dnat"),
            Self::HasMark(mark) => write!(f, "{} & {mark:#010x} != 0x00000000", Field::Mark),
            Self::SetMark(mark) => write!(f, "{0} set {0} | {mark:#010x}", Field::Mark),
            Self::FlipMark(mark) => write!(f, "{0} set {0} ^ {mark:#010x}", Field::Mark),
            Self::Lookup { key, set, not: n } => write!(f, "{} {}@{set}", Fields(key), not(n)),
            Self::VerdictMap { key, map } => write!(f, "{} vmap @{map}", Fields(key)),
            Self::UpdateSet { operation, set, key, timeout } => {
                let word = match operation {
                    SetOperation::Add => "add",
                    SetOperation::Update => "update",
                    SetOperation::Delete => "delete",
                };
                write!(f, "{word} @{set} {{ {}", Fields(key))?;
                if let Some(seconds) = timeout {
                    write!(f, " timeout {}", Duration(*seconds))?;
                }
                f.write_str(" }")
            }
            Self::Dnat { family, key, map } => write!(f, "dnat {} to {} map @{map}", family.nft(), Fields(key)),
            Self::Masquerade { random: true } => f.write_str("masquerade fully-random"),
            Self::Masquerade { random: false } => f.write_str("masquerade"),
            Self::Reject(_) => f.write_str("reject"),
            Self::Counter => f.write_str("counter"),
            Self::NamedCounter(name) => write!(f, "counter name {}", Quoted(name)),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}

/// Seconds in nft syntax: `1d2h3m4s`, without zero parts.
pub(super) struct Duration(pub u32);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        let parts = [(seconds / 86400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
        if seconds == 0 {
            return f.write_str("0s");
        }
        parts.iter().filter(|(number, _)| *number > 0).try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

/// One rule, without its chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Rule {
    /// The statements, in order. Each is evaluated only if the earlier ones matched.
    pub statements: Vec<Statement>,
    /// `comment`
    pub comment: Option<Name>,
}

impl Rule {
    /// A rule of these statements.
    #[must_use]
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self { statements: statements.into(), comment: None }
    }

    /// The rule with a comment.
    #[must_use]
    pub fn comment(self, text: &str) -> Self {
        Self { comment: Some(text.into()), ..self }
    }

    /// The kernel's instructions.
    #[must_use]
    pub fn expressions(&self) -> Vec<Expression> {
        let mut out = Vec::with_capacity(8);
        self.statements.iter().for_each(|statement| statement.expressions(&mut out));
        out
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, statement) in self.statements.iter().enumerate() {
            write!(f, "{}{statement}", if at > 0 { " " } else { "" })?;
        }
        self.comment.as_ref().map_or(Ok(()), |comment| write!(f, " comment {}", Quoted(comment)))
    }
}
