//! Encodes and decodes whole rules.

use super::expressions as write;
use super::native::Register;
use super::sets::SetIndex;
use super::{matches, native, targets};
use crate::iptables::{Chain, Rule, Target};
use crate::kernel::netlink::{Attributes, Request, text};
use crate::kernel::nftables::uapi::*;
use crate::{Counters, IpFamily};

/// The expressions that iptables-nft accepts in its tables. It refuses to list or change a table with any other.
const COMPATIBLE: [&str; 12] =
    ["match", "target", "payload", "meta", "cmp", "bitwise", "counter", "immediate", "lookup", "range", "limit", "log"];

/// A rule of an iptables-nft table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodedRule {
    /// A rule that this crate can express; it prints what `iptables-save` prints.
    Known(Rule),
    /// Any other rule.
    Unknown(UnknownRule),
}

/// A rule that this crate cannot express.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownRule {
    /// The first part that is not understood, such as `match limit`.
    pub part: String,
    /// The target: a chain, a verdict or an extension's name.
    pub target: Option<String>,
    /// Whether iptables-nft accepts the rule in its tables.
    pub is_compatible: bool,
}

impl DecodedRule {
    /// The target's name: a chain, a verdict or an extension.
    #[must_use]
    pub fn jump(&self) -> Option<&str> {
        match self {
            Self::Known(Rule { target: Some(Target::Jump(chain)), .. }) => Some(chain.as_str()),
            Self::Known(_) => None,
            Self::Unknown(unknown) => unknown.target.as_deref(),
        }
    }
}

/// Appends a rule's expressions and its compatibility attributes to a request.
///
/// # Errors
/// The reason why the rule cannot be encoded.
pub(super) fn encode(family: IpFamily, rule: &Rule, sets: &mut SetIndex, request: &mut Request) -> Result<(), String> {
    let mut result = Ok(0);
    request.nested(NFTA_RULE_EXPRESSIONS, |list| result = expressions(family, rule, sets, list));
    let protocol = u32::from(result?);
    request.nested(NFTA_RULE_COMPAT, |nest| {
        nest.attribute(NFTA_RULE_COMPAT_PROTO, &protocol.to_be_bytes());
        nest.attribute(NFTA_RULE_COMPAT_FLAGS, &0_u32.to_be_bytes());
    });
    Ok(())
}

fn expressions(family: IpFamily, rule: &Rule, sets: &mut SetIndex, list: &mut Request) -> Result<u8, String> {
    let protocol = native::encode(family, rule, list)?;
    for of in &rule.matches {
        write::extension(list, "match", &matches::encode(family, of, sets)?);
    }
    write::counter(list);
    let Some(target) = &rule.target else { return Ok(protocol) };
    if let Some(extension) = targets::encode(family, target) {
        write::extension(list, "target", &extension);
        return Ok(protocol);
    }
    match target {
        Target::Jump(chain) => write::verdict(list, NFT_JUMP, Some(chain.as_str())),
        Target::Accept => write::verdict(list, NF_ACCEPT, None),
        Target::Drop => write::verdict(list, NF_DROP, None),
        _ => write::verdict(list, NFT_RETURN, None),
    }
    Ok(protocol)
}

/// Decodes the expressions of a rule's message, with the packets and bytes that the rule counted.
pub(super) fn decode(
    family: IpFamily,
    message: Attributes<'_>,
    sets: &mut SetIndex,
) -> (DecodedRule, Option<Counters>) {
    let list = message.nest(NFTA_RULE_EXPRESSIONS).unwrap_or(Attributes::new(&[]));
    let mut decoder = Decoder {
        family,
        register: Register::new(family),
        rule: Rule::default(),
        counters: None,
        target: None,
        unknown: None,
        is_compatible: true,
    };
    for (_, item) in list.filter(|(kind, _)| *kind == NFTA_LIST_ELEM) {
        let item = Attributes::new(item);
        let name = item.text(NFTA_EXPR_NAME).unwrap_or_default();
        let data = item.nest(NFTA_EXPR_DATA).unwrap_or(Attributes::new(&[]));
        decoder.expression(name, data, sets);
    }
    let unread = decoder.register.is_pending().then(|| "a value that is not compared".to_owned());
    let Decoder { rule, counters, target, unknown, is_compatible, .. } = decoder;
    let decoded = match unknown.or(unread) {
        None => DecodedRule::Known(rule),
        Some(part) => DecodedRule::Unknown(UnknownRule { part, target, is_compatible }),
    };
    (decoded, counters)
}

/// A rule being decoded.
struct Decoder<'a> {
    family: IpFamily,
    register: Register<'a>,
    rule: Rule,
    counters: Option<Counters>,
    /// The name of the target.
    target: Option<String>,
    /// The first part that is not understood.
    unknown: Option<String>,
    is_compatible: bool,
}

impl<'a> Decoder<'a> {
    fn expression(&mut self, name: &str, data: Attributes<'a>, sets: &mut SetIndex) {
        self.is_compatible &= COMPATIBLE.contains(&name);
        // Nothing follows a target in rules of iptables.
        let known = self.target.is_none().then(|| self.known(name, data, sets)).flatten();
        if known.is_none() && self.unknown.is_none() {
            self.unknown = Some(match (name, data.text(EXTENSION[0])) {
                ("match" | "target", Some(extension)) => format!("{name} {extension}"),
                _ => name.to_owned(),
            });
        }
    }

    fn known(&mut self, name: &str, data: Attributes<'a>, sets: &mut SetIndex) -> Option<()> {
        match name {
            "counter" => {
                let number = |kind| data.be64(kind);
                let counters = Counters { packets: number(NFTA_COUNTER_PACKETS)?, bytes: number(NFTA_COUNTER_BYTES)? };
                self.counters.is_none().then(|| self.counters = Some(counters))
            }
            "match" => {
                let found = matches::decode(self.family, extension(data)?, sets)?;
                self.rule.matches.push(found);
                Some(())
            }
            "target" => {
                let extension = extension(data)?;
                self.target = Some(extension.0.to_owned());
                self.rule.target = Some(targets::decode(self.family, extension)?);
                Some(())
            }
            "immediate" => self.verdict(data),
            name => self.register.decode(name, data, &mut self.rule),
        }
    }

    fn verdict(&mut self, data: Attributes<'_>) -> Option<()> {
        (data.be32(1)? == NFT_REG_VERDICT).then_some(())?;
        let verdict = data.nest(2)?.nest(NFTA_DATA_VERDICT)?;
        let code = i32::from_be_bytes(verdict.find_array(NFTA_VERDICT_CODE)?);
        let chain = verdict.text(NFTA_VERDICT_CHAIN);
        let (name, target) = match code {
            NF_ACCEPT => ("ACCEPT", Some(Target::Accept)),
            NF_DROP => ("DROP", Some(Target::Drop)),
            NFT_RETURN => ("RETURN", Some(Target::Return)),
            NFT_JUMP => (chain?, Chain::parse(chain?).map(Target::Jump)),
            NFT_GOTO => (chain?, None),
            _ => return None,
        };
        self.target = Some(name.to_owned());
        self.rule.target = Some(target?);
        Some(())
    }
}

/// Name, revision and structure of a `match` or `target`.
fn extension<'a>(data: Attributes<'a>) -> Option<(&'a str, u32, &'a [u8])> {
    let [name, revision, structure] = EXTENSION;
    Some((data.find(name).and_then(text)?, data.be32(revision)?, data.find(structure)?))
}
