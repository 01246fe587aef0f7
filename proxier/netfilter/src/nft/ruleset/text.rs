//! Prints rules read from the kernel in nft syntax, as far as their expressions determine it.

use std::collections::BTreeMap;

use super::set::Set;
use super::terms::{self, Term};
use super::values::{self, IPV4, IPV6, MARK};
use super::{Rule, Scope, Table, TableId};
use crate::IpFamily;
use crate::nft::rule::Duration;
use crate::nft::{Comparison, Expression, Quoted, Register, Registers, SetOperation, Translation};

/// The number of printed elements of an anonymous set.
const NAMED: usize = 4;

impl Rule {
    /// The rule in nft syntax, as far as its expressions determine it.
    ///
    /// Long anonymous sets are abbreviated.
    #[must_use]
    pub fn text(&self, id: &TableId, table: &Table) -> String {
        let family = match id.scope {
            Scope::Family(family) => Some(family),
            Scope::Both => None,
        };
        let mut writer = Writer { table, family, words: Vec::new(), registers: BTreeMap::new(), protocol: None };
        for expression in &self.expressions {
            if matches!(expression, Expression::Counter) {
                let count = self.counters.unwrap_or_default();
                writer.push_word(format!("counter packets {} bytes {}", count.packets, count.bytes));
            } else {
                writer.print(expression);
            }
        }
        if let Some(comment) = &self.comment {
            writer.push_word(format!("comment {}", Quoted(comment)));
        }
        writer.words.join(" ")
    }
}

struct Writer<'a> {
    table: &'a Table,
    family: Option<IpFamily>,
    words: Vec<String>,
    /// The terms in the registers.
    registers: BTreeMap<u8, Term>,
    /// The transport protocol that the previous word matches, which nft does not repeat.
    protocol: Option<&'static str>,
}

impl Writer<'_> {
    fn push_word(&mut self, word: String) {
        self.words.push(word);
    }

    fn term(&self, register: Register) -> Term {
        self.registers.get(&register.0).cloned().unwrap_or_else(|| Term::new(format!("register {}", register.0), 0, 4))
    }

    fn print(&mut self, expression: &Expression) {
        match expression {
            Expression::Load { from, width, to } => {
                let term = terms::term(*from, *width, self.family, self.protocol);
                if self.protocol.is_some_and(|protocol| term.text.starts_with(protocol)) {
                    self.words.pop();
                    self.protocol = None;
                }
                // nft does not repeat the family either.
                let said = self.words.last().is_some_and(|word| word.starts_with("meta nfproto ip"));
                if said && (term.text.starts_with("ip ") || term.text.starts_with("ip6 ")) {
                    self.words.pop();
                }
                self.registers.insert(to.0, term);
                return;
            }
            Expression::Immediate { to, value } => {
                let constant = Term { value: Some(value.clone()), ..Term::new("", 0, value.len()) };
                _ = self.registers.insert(to.0, constant);
            }
            Expression::Bitwise { register, mask, xor } => {
                let term = Term { bits: Some((mask.clone(), xor.clone())), ..self.term(*register) };
                self.registers.insert(register.0, term);
            }
            Expression::Shift { register, right, bits, .. } => {
                let mut term = self.term(*register);
                term.text = format!("{} {} {bits}", masked(&term), if *right { ">>" } else { "<<" });
                term.bits = None;
                self.registers.insert(register.0, term);
            }
            Expression::Hash { of, to, modulus, seed, offset } => {
                let of = of.map_or_else(|| "symhash".to_owned(), |of| format!("jhash {}", self.hashed(of)));
                let seed = seed.map(|seed| format!(" seed {seed:#x}")).unwrap_or_default();
                let text = format!("{of} mod {modulus}{seed}{}", terms::offset(*offset));
                self.registers.insert(to.0, Term::new(text, 4, 4));
            }
            Expression::ByteOrder { .. } => return,
            Expression::Compare { register, not, value } => return self.compare(*register, *not, value),
            Expression::CompareOrder { register, order, value } => self.compared(*register, *order, value),
            Expression::Range { register, not, from, to } => {
                let term = self.term(*register);
                let not = if *not { "!= " } else { "" };
                let (from, to) = (values::value(term.kind, from), values::value(term.kind, to));
                self.push_word(format!("{} {not}{from}-{to}", masked(&term)));
            }
            Expression::Lookup { set, key, to, verdict, not } => self.lookup(set, *key, *to, *verdict, *not),
            _ => self.print_action(expression),
        }
        self.protocol = None;
    }

    /// The concatenation in consecutive registers, with as many fields as the set's key has.
    fn key(&self, at: Register, set: Option<&Set>) -> String {
        let mut at = at.0;
        let mut texts = Vec::new();
        let most = set.map_or(usize::MAX, |set| set.key.len());
        while let Some(term) = self.registers.get(&at).filter(|_| texts.len() < most) {
            texts.push(masked(term));
            at = at.saturating_add(u8::try_from(term.width.div_ceil(4)).unwrap_or(u8::MAX).max(1));
            if set.is_none() {
                break;
            }
        }
        texts.join(" . ")
    }

    /// The concatenation that a hash reads: consecutive registers up to a length in bytes.
    fn hashed(&self, (first, length): (Register, u32)) -> String {
        let end = u32::from(first.0) + length.div_ceil(4);
        let terms = self.registers.range(first.0..).take_while(|(at, _)| u32::from(**at) < end);
        terms.map(|(_, term)| masked(term)).collect::<Vec<_>>().join(" . ")
    }

    fn lookup(&mut self, name: &str, key: Register, to: Option<Register>, verdict: bool, not: bool) {
        let set = self.table.sets.get(name);
        let key = match set {
            Some(set) => self.key(key, Some(set)),
            None => self.registers.range(key.0..).map(|(_, term)| masked(term)).collect::<Vec<_>>().join(" . "),
        };
        let called = match set {
            Some(set) if set.is_anonymous() && set.elements.is_complete() => listed(set),
            _ => format!("@{name}"),
        };
        match to {
            Some(to) => {
                let value = set.and_then(|set| set.value.as_deref()).unwrap_or_default();
                let width = value.iter().map(|part| part.padded()).sum();
                let kind = value.first().map_or(0, |part| part.kind);
                self.registers.clear();
                self.registers.insert(to.0, Term::new(format!("{key} map {called}"), kind, width));
            }
            None => {
                self.registers.clear();
                self.push_word(match (verdict, not) {
                    (true, _) => format!("{key} vmap {called}"),
                    (false, true) => format!("{key} != {called}"),
                    (false, false) => format!("{key} {called}"),
                });
            }
        }
    }

    fn compare(&mut self, register: Register, not: bool, value: &[u8]) {
        let term = self.term(register);
        self.registers.remove(&register.0);
        self.protocol = None;
        if term.text == "meta nfproto" && !not {
            self.family = value.first().and_then(|number| IpFamily::of_nfproto(*number));
        }
        if term.text == "meta l4proto" && !not {
            self.protocol = value.first().and_then(|number| values::protocol(*number));
        }
        let operator = if not { "!= " } else { "" };
        let text = match &term.bits {
            Some((mask, xor)) if xor.iter().all(|byte| *byte == 0) => with_mask(&term, mask, not, value),
            _ => None,
        };
        let address = matches!(term.kind, IPV4 | IPV6);
        let full = if term.kind == IPV4 { 4 } else { 16 };
        self.push_word(text.unwrap_or_else(|| {
            if address && term.bits.is_none() && value.len() < full {
                let mut whole = value.to_vec();
                whole.resize(full, 0);
                return format!("{} {operator}{}/{}", term.text, values::value(term.kind, &whole), value.len() * 8);
            }
            format!("{} {operator}{}", masked(&term), values::value(term.kind, value))
        }));
    }

    fn compared(&mut self, register: Register, order: Comparison, value: &[u8]) {
        let term = self.term(register);
        let order = match order {
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        };
        let (text, value) = (masked(&term), values::value(term.kind, value));
        // nft prints two comparisons as a range, such as `80-90`.
        if order == "<=" && self.words.last().is_some_and(|word| word.starts_with(&format!("{text} >= "))) {
            let from = self.words.pop().unwrap_or_default();
            return self.push_word(format!("{}-{value}", from.replacen(">= ", "", 1)));
        }
        self.push_word(format!("{text} {order} {value}"));
    }

    /// Prints an expression with an effect.
    fn print_action(&mut self, expression: &Expression) {
        let text = match expression {
            Expression::SetMark { from } => self.assignment("meta mark", *from),
            Expression::SetConnectionMark { from } => self.assignment("ct mark", *from),
            Expression::SetOther { of, key, from } => {
                let what = if *of == "ct" { terms::connection(*key, None).0 } else { terms::meta(*key) };
                self.assignment(&what, *from)
            }
            Expression::Dynset { set, operation, key, timeout } => {
                let word = match operation {
                    SetOperation::Add => "add",
                    SetOperation::Update => "update",
                    SetOperation::Delete => "delete",
                };
                let key = self.key(*key, self.table.sets.get(set));
                let seconds = u32::try_from(timeout / 1000).unwrap_or(u32::MAX);
                let timeout = if seconds > 0 { format!(" timeout {}", Duration(seconds)) } else { String::new() };
                format!("{word} @{set} {{ {key}{timeout} }}")
            }
            Expression::Dnat { family, address, port } => {
                self.translation("dnat", *family, Some((*address, *address)), Some((*port, *port)), "")
            }
            Expression::Translate { kind, family, address, port, flags } => {
                let word = match kind {
                    Translation::Source => "snat",
                    Translation::Destination => "dnat",
                    Translation::Redirect => "redirect",
                    Translation::Masquerade => "masquerade",
                };
                let flags = values::bits(&[(4, "random"), (8, "persistent"), (16, "fully-random")], *flags);
                self.translation(word, *family, *address, *port, &flags.map(|f| format!(" {f}")).unwrap_or_default())
            }
            Expression::Masquerade { random } => {
                if *random {
                    "masquerade fully-random".to_owned()
                } else {
                    "masquerade".to_owned()
                }
            }
            Expression::RejectWith { kind: 1, .. } => "reject with tcp reset".to_owned(),
            Expression::Reject { .. } | Expression::RejectWith { .. } => "reject".to_owned(),
            Expression::NoTrack => "notrack".to_owned(),
            Expression::Passive(name) => (*name).to_owned(),
            Expression::NamedCounter(name) => format!("counter name {}", Quoted(name)),
            Expression::Verdict(verdict) => verdict.to_string(),
            Expression::Unknown(name) => format!("[{name}]"),
            _ => return,
        };
        self.push_word(text);
    }

    fn assignment(&self, what: &str, from: Register) -> String {
        let term = self.term(from);
        let value = match &term.value {
            Some(value) => values::value(if what.ends_with("mark") { MARK } else { 4 }, value),
            None => masked(&term),
        };
        format!("{what} set {value}")
    }

    fn translation(
        &self,
        word: &str,
        family: u8,
        address: Option<Registers>,
        port: Option<Registers>,
        flags: &str,
    ) -> String {
        let kind = if IpFamily::of_nfproto(family) == Some(IpFamily::V6) { IPV6 } else { IPV4 };
        let constant = |register: Register, kind| self.term(register).value.map(|bytes| values::value(kind, &bytes));
        let range = |(from, to): Registers, kind| {
            let (first, last) = (constant(from, kind)?, constant(to, kind)?);
            Some(if from == to { first } else { format!("{first}-{last}") })
        };
        let port = port.and_then(|registers| range(registers, values::PORT));
        let text = match address {
            None => port.map(|port| format!(":{port}")),
            Some(registers) => range(registers, kind).map(|address| match port {
                Some(port) if kind == IPV6 => format!("[{address}]:{port}"),
                Some(port) => format!("{address}:{port}"),
                None => address,
            }),
        };
        match (text, address) {
            (Some(text), _) => format!("{word} to {text}{flags}"),
            (None, Some((from, _))) => {
                let family = IpFamily::of_nfproto(family).map(|family| format!(" {}", family.nft()));
                format!("{word}{} to {}{flags}", family.unwrap_or_default(), self.term(from).text)
            }
            (None, None) => format!("{word}{flags}"),
        }
    }
}

/// The term with its mask and XOR operand.
fn masked(term: &Term) -> String {
    let Some((mask, xor)) = &term.bits else {
        return term.value.as_ref().map_or_else(|| term.text.clone(), |value| values::value(term.kind, value));
    };
    let (keeps_all, clears) = (mask.iter().all(|byte| *byte == 0xff), mask.iter().zip(xor).all(|(m, x)| *m == !*x));
    let shown = |bytes: &[u8]| values::value(term.kind, bytes);
    match xor.iter().all(|byte| *byte == 0) {
        true => format!("{} & {}", term.text, shown(mask)),
        false if clears => format!("{} | {}", term.text, shown(xor)),
        false if keeps_all => format!("{} ^ {}", term.text, shown(xor)),
        false => format!("{} & {} ^ {}", term.text, shown(mask), shown(xor)),
    }
}

/// A masked comparison in nft's shorter syntax: a network, or names of bits.
fn with_mask(term: &Term, mask: &[u8], not: bool, value: &[u8]) -> Option<String> {
    let none = value.iter().all(|byte| *byte == 0);
    if matches!(term.kind, IPV4 | IPV6) {
        let ones: u32 = mask.iter().take_while(|byte| **byte == 0xff).map(|_| 8).sum();
        let ones = ones + mask.iter().find(|byte| **byte != 0xff).map_or(0, |byte| byte.leading_ones());
        let plain: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
        let not = if not { "!= " } else { "" };
        return (ones == plain).then(|| format!("{} {not}{}/{ones}", term.text, values::value(term.kind, value)));
    }
    let names: &[(u32, &str)] = match term.kind {
        values::STATE => &values::STATES,
        values::STATUS => &values::STATUSES,
        values::FLAGS => &values::TCP_FLAGS,
        _ => return None,
    };
    let named = values::bits(names, values::number(mask)?)?;
    match (none, not) {
        (true, true) => Some(format!("{} {named}", term.text)),
        (true, false) => Some(format!("{} ! {named}", term.text)),
        _ => None,
    }
}

/// An anonymous set in nft syntax.
fn listed(set: &Set) -> String {
    let shown: Vec<String> = set.elements.iter().take(NAMED).map(|element| set.text(element).to_string()).collect();
    let more = if set.elements.len() > NAMED { ", …" } else { "" };
    format!("{{ {}{more} }}", shown.join(", "))
}
