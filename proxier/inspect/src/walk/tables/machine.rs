//! Executes the expressions of one nf_tables rule for one packet.
//!
//! A rule with random choices yields one result for each value that they can take.

use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::nft::jhash::{jhash, scaled};
use netfilter::nft::ruleset::{Element, ElementLookup, Rule, Set, TableId, UnreadPart};
use netfilter::nft::{
    Bytes, Comparison, Expression, Field, Load, Name, PayloadBase, Register, Registers as Range, SetOperation,
    Translation, Value, Verdict,
};

use super::super::chains::TracedPacket;
use super::super::path::MOST;
use super::super::{Doubt, KnownClient, MOST_CHOICES, MOST_SLOTS};
use super::TableScope;
use super::facts::{self, LoadFailure};
use super::registers::Registers;
use proxier::model::Protocol;

/// `NFT_CT_ZONE`
const ZONE: u32 = 17;
/// `NFT_REJECT_TCP_RST`
const RESET: u32 = 1;
/// `NFPROTO_INET`
const INET: u8 = 1;
/// `NF_NAT_RANGE_NETMAP`
const NETMAP: u32 = 64;

/// The result of executing a rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RuleEnd {
    /// The rule does not match.
    Passed,
    /// The rule matches, with its verdict if it has one.
    Matched(Option<Verdict>),
    /// The rule matches and rejects the packet.
    Rejected,
    /// Undecidable: the reason, and the index of the first undecided expression.
    Doubt(String, usize),
}

/// One possible execution of a rule.
pub(super) struct RuleRun {
    pub(super) traced: TracedPacket,
    /// The probability.
    pub(super) odds: f64,
    /// The elements of sets and maps that matched.
    pub(super) elements: Vec<String>,
    pub(super) end: RuleEnd,
}

/// How execution continues after an expression.
enum NextStep {
    Next,
    RuleEnd(RuleEnd),
    /// A random number in a register, or the hash of an unknown client: register, modulus and offset. All values are equally
    /// likely.
    Choose(Register, u32, u32),
}

#[derive(Clone)]
struct Execution {
    traced: TracedPacket,
    registers: Registers,
    odds: f64,
    at: usize,
    elements: Vec<String>,
    /// What the rule has loaded of the packet's source.
    loaded: KnownClient,
    /// Whether the hash of an unknown client chose: the slot that it is looked up in says nothing then.
    is_slot_unknown: bool,
}

impl Execution {
    fn of(traced: TracedPacket) -> Self {
        Self {
            traced,
            registers: Registers::new(),
            odds: 1.0,
            at: 0,
            elements: Vec::new(),
            loaded: KnownClient::Unknown,
            is_slot_unknown: false,
        }
    }
}

/// Executes a rule. Executions with the same result are merged.
pub(super) fn run(
    scope: &TableScope<'_>,
    rule: &Rule,
    mut traced: TracedPacket,
    lacks: &mut Vec<UnreadPart>,
) -> Vec<RuleRun> {
    // Earlier steps are not needed here and are expensive to copy.
    let steps = std::mem::take(&mut traced.steps);
    let doubts = std::mem::take(&mut traced.doubts);
    let mut open = vec![Execution::of(traced)];
    let (mut runs, mut chosen_so_far): (Vec<RuleRun>, usize) = (Vec::new(), 0);
    while let Some(mut state) = open.pop() {
        let flow = loop {
            let Some(expression) = rule.expressions.get(state.at) else {
                break NextStep::RuleEnd(RuleEnd::Matched(None));
            };
            match state.execute(expression, scope, lacks) {
                NextStep::Next => state.at += 1,
                flow => break flow,
            }
        };
        match flow {
            NextStep::Next => {}
            NextStep::RuleEnd(end) => add(&mut runs, state, end),
            NextStep::Choose(_, modulus, _) if chosen_so_far > MOST => {
                let why = format!("a choice among {modulus} for each of {chosen_so_far} others is not followed");
                let at = state.at;
                add(&mut runs, state, RuleEnd::Doubt(why, at));
            }
            NextStep::Choose(to, modulus, offset) => {
                chosen_so_far += usize::try_from(modulus).unwrap_or(usize::MAX);
                state.at += 1;
                state.odds /= f64::from(modulus);
                for number in (0..modulus).rev() {
                    let mut chosen = state.clone();
                    chosen.registers.store(to, &offset.wrapping_add(number).to_ne_bytes());
                    open.push(chosen);
                }
            }
        }
    }
    for run in &mut runs {
        run.traced.probability *= run.odds;
        run.traced.steps = steps.clone();
        run.traced.doubts.splice(..0, doubts.iter().cloned());
    }
    runs
}

fn add(runs: &mut Vec<RuleRun>, state: Execution, end: RuleEnd) {
    let Execution { traced, odds, mut elements, .. } = state;
    if matches!(end, RuleEnd::Passed | RuleEnd::Doubt(..)) {
        elements.clear();
    }
    let same = |run: &&mut RuleRun| run.end == end && run.elements == elements && run.traced.is_like(&traced);
    match runs.iter_mut().find(same) {
        Some(run) => run.odds += odds,
        None => runs.push(RuleRun { traced, odds, elements, end }),
    }
}

impl Execution {
    fn doubt(&self, why: impl Into<String>) -> NextStep {
        NextStep::RuleEnd(RuleEnd::Doubt(why.into(), self.at))
    }

    fn goes_on(&self, holds: bool) -> NextStep {
        if holds { NextStep::Next } else { NextStep::RuleEnd(RuleEnd::Passed) }
    }

    /// The value in a register, or a doubt if none was stored.
    fn value(&self, at: Register, length: usize) -> Result<&[u8], NextStep> {
        self.registers.load(at, length).ok_or_else(|| self.doubt("it looks at something that it did not load"))
    }

    fn changed(&self, done: Option<()>) -> NextStep {
        done.map_or_else(|| self.doubt("it changes something that it did not load"), |()| NextStep::Next)
    }

    fn execute(&mut self, expression: &Expression, scope: &TableScope<'_>, lacks: &mut Vec<UnreadPart>) -> NextStep {
        self.carry_out(expression, scope, lacks).unwrap_or_else(|flow| flow)
    }

    fn carry_out(
        &mut self,
        expression: &Expression,
        scope: &TableScope<'_>,
        lacks: &mut Vec<UnreadPart>,
    ) -> Result<NextStep, NextStep> {
        let size = |length: u32| usize::try_from(length).unwrap_or(usize::MAX);
        Ok(match expression {
            Expression::Load {
                from: Load::Random { modulus, offset } | Load::Incremental { modulus, offset },
                to,
                ..
            } => self.choose(*to, *modulus, *offset, MOST_CHOICES),
            Expression::Hash { of, to, modulus, seed, offset } => {
                let known = seed.filter(|_| self.loaded <= scope.context.node.client).zip(*of);
                let Some((seed, (register, length))) = known else {
                    self.is_slot_unknown = true;
                    return Ok(self.choose(*to, *modulus, *offset, MOST_SLOTS));
                };
                let number = scaled(jhash(self.value(register, size(length))?, seed), *modulus, *offset);
                self.registers.store(*to, &number.to_ne_bytes());
                NextStep::Next
            }
            Expression::Load { from, width, to } => match facts::load(*from, *width, &self.traced, scope) {
                Ok(value) => {
                    self.registers.store(*to, &value);
                    self.loaded = self.loaded.max(source_in(*from, scope.context.family));
                    NextStep::Next
                }
                Err(LoadFailure::None) => NextStep::RuleEnd(RuleEnd::Passed),
                Err(LoadFailure::Unknown(why)) => self.doubt(why),
            },
            Expression::Immediate { to, value } => {
                self.registers.store(*to, value);
                NextStep::Next
            }
            Expression::Bitwise { register, mask, xor } => {
                let done = self.registers.mask(*register, mask, xor);
                self.changed(done)
            }
            Expression::Shift { register, length, right, bits } => {
                let done = self.registers.shift(*register, size(*length), *right, *bits);
                self.changed(done)
            }
            Expression::ByteOrder { register, length, size: each, .. } => {
                let done = self.registers.turn(*register, size(*length), size(*each));
                self.changed(done)
            }
            Expression::Compare { register, not, value } => {
                self.goes_on((self.value(*register, value.len())? == value) != *not)
            }
            Expression::CompareOrder { register, order, value } => {
                let found = self.value(*register, value.len())?;
                self.goes_on(match order {
                    Comparison::Less => found < value.as_slice(),
                    Comparison::LessOrEqual => found <= value.as_slice(),
                    Comparison::Greater => found > value.as_slice(),
                    Comparison::GreaterOrEqual => found >= value.as_slice(),
                })
            }
            Expression::Range { register, not, from, to } => {
                let found = self.value(*register, from.len())?;
                self.goes_on((from.as_slice() <= found && found <= to.as_slice()) != *not)
            }
            Expression::Lookup { set, key, to, verdict, not } => {
                return self.lookup(scope, lacks, (set, *key), (*to, *verdict, *not));
            }
            Expression::Dynset { set, operation, key, .. } => {
                return self.remember(scope, lacks, set, *operation, *key);
            }
            _ => return self.act(expression, scope),
        })
    }

    fn choose(&mut self, to: Register, modulus: u32, offset: u32, most: u32) -> NextStep {
        match modulus {
            1 => {
                self.registers.store(to, &offset.to_ne_bytes());
                NextStep::Next
            }
            2.. if modulus <= most => NextStep::Choose(to, modulus, offset),
            _ => self.doubt(format!("a choice among {modulus} is not followed")),
        }
    }

    /// Looks up a key in a set, from the kernel's elements and the changes during the walk.
    fn find<'a>(
        &self,
        scope: &TableScope<'a>,
        lacks: &mut Vec<UnreadPart>,
        name: &str,
        at: Register,
    ) -> Result<SetAnswer<'a>, NextStep> {
        let Some((name, set)) = scope.table.sets.get_key_value(name) else {
            lacks.push(UnreadPart::Set(scope.id.clone(), name.into()));
            return Err(NextStep::RuleEnd(RuleEnd::Passed));
        };
        let key = self.value(at, set.key_length())?;
        let context = (scope.id.clone(), name.clone(), key.into());
        if let Some(here) = self.traced.changed.get(&context) {
            return Ok(SetAnswer { set, context, here: *here, element: None });
        }
        let element = match set.find(key) {
            ElementLookup::Present(element) => Some(element),
            ElementLookup::Absent => None,
            ElementLookup::Unread => {
                lacks.push(UnreadPart::Key(context.0.clone(), context.1.clone(), context.2.clone()));
                None
            }
        };
        Ok(SetAnswer { set, context, here: element.is_some(), element })
    }

    fn lookup(
        &mut self,
        scope: &TableScope<'_>,
        lacks: &mut Vec<UnreadPart>,
        (set, key): (&str, Register),
        (to, verdict, not): (Option<Register>, bool, bool),
    ) -> Result<NextStep, NextStep> {
        let asked = self.find(scope, lacks, set, key)?;
        if asked.here == not {
            return Ok(NextStep::RuleEnd(RuleEnd::Passed));
        }
        let Some(element) = asked.element else { return Ok(NextStep::Next) };
        if !self.is_slot_unknown {
            self.elements.push(asked.set.text(element).to_string());
        }
        Ok(match (&element.value, to) {
            (Some(Value::Data(value)), Some(to)) => {
                self.registers.store(to, value);
                NextStep::Next
            }
            (Some(Value::Verdict(Verdict::Continue)), None) => NextStep::Next,
            (Some(Value::Verdict(found)), None) if verdict => NextStep::RuleEnd(RuleEnd::Matched(Some(found.clone()))),
            (None, _) if verdict || to.is_some() => self.doubt(format!("an element of {set} has no value")),
            _ => NextStep::Next,
        })
    }

    /// Changes a set for later rules of the walk.
    fn remember(
        &mut self,
        scope: &TableScope<'_>,
        lacks: &mut Vec<UnreadPart>,
        set: &str,
        operation: SetOperation,
        key: Register,
    ) -> Result<NextStep, NextStep> {
        let asked = self.find(scope, lacks, set, key)?;
        let adds = operation != SetOperation::Delete;
        self.traced.changed.insert(asked.context, adds);
        if adds {
            self.traced.remembered.insert(set.to_owned());
        }
        // Deleting a missing element does not end the rule.
        Ok(NextStep::Next)
    }

    /// Executes an expression with a side effect, or without any effect on the walk.
    fn act(&mut self, expression: &Expression, scope: &TableScope<'_>) -> Result<NextStep, NextStep> {
        let number =
            |state: &Self, from| state.value(from, 4).map(|value| value.try_into().map_or(0, u32::from_ne_bytes));
        Ok(match expression {
            Expression::SetMark { from } => {
                self.traced.mark = number(self, *from)?;
                self.traced.mark_unknown = None;
                NextStep::Next
            }
            Expression::SetConnectionMark { from } => {
                self.traced.connection_mark = Some(number(self, *from)?);
                NextStep::Next
            }
            Expression::SetOther { of: "ct", key: ZONE, .. } => {
                let why = "answers are looked up in another zone of connections, which is not followed";
                let hook = format!("{} ({})", scope.id, scope.context.hook.to_lowercase());
                self.traced.doubt(Doubt::new(hook, "ct zone set", why));
                NextStep::Next
            }
            Expression::NoTrack => {
                let hook = format!("{} ({})", scope.id, scope.context.hook.to_lowercase());
                self.traced.untrack(scope.tracked, hook, "notrack");
                NextStep::Next
            }
            Expression::Verdict(Verdict::Continue) => NextStep::Next,
            Expression::Verdict(verdict) => NextStep::RuleEnd(RuleEnd::Matched(Some(verdict.clone()))),
            Expression::Dnat { family, address, port } => {
                let (address, port) = (Some((*address, *address)), Some((*port, *port)));
                return self.translate(scope, Translation::Destination, *family, [address, port], 0);
            }
            Expression::Translate { kind, family, address, port, flags } => {
                return self.translate(scope, *kind, *family, [*address, *port], *flags);
            }
            Expression::Masquerade { .. } => return self.translate(scope, Translation::Masquerade, 0, [None, None], 0),
            Expression::Reject { .. } => NextStep::RuleEnd(RuleEnd::Rejected),
            // A TCP reset is sent for TCP packets only.
            Expression::RejectWith { kind: RESET, .. } if self.traced.packet.protocol != Protocol::Tcp => {
                NextStep::RuleEnd(RuleEnd::Matched(Some(Verdict::Drop)))
            }
            Expression::RejectWith { .. } => NextStep::RuleEnd(RuleEnd::Rejected),
            Expression::Unknown(name) => self.doubt(format!("{name} is not known here")),
            _ => NextStep::Next,
        })
    }

    /// Applies NAT, which ends the base chain.
    fn translate(
        &mut self,
        scope: &TableScope<'_>,
        kind: Translation,
        family: u8,
        [address, port]: [Option<Range>; 2],
        flags: u32,
    ) -> Result<NextStep, NextStep> {
        // In inet tables nft omits the family if only a port is given, and the kernel accepts that for both.
        if ![0, INET, scope.context.family.nfproto()].contains(&family) {
            return Ok(NextStep::Next);
        }
        let hooks: &[&str] = match kind {
            Translation::Source => &["POSTROUTING", "INPUT"],
            Translation::Destination | Translation::Redirect => &["PREROUTING", "OUTPUT"],
            Translation::Masquerade => &["POSTROUTING"],
        };
        if !scope.nat || !hooks.contains(&scope.context.hook) || flags & NETMAP != 0 {
            return Err(self.doubt("this translation is not known here"));
        }
        let ip = match address {
            Some(range) => Some(self.address(range, scope)?),
            None => None,
        };
        let port = match port {
            Some((from, to)) => {
                let [first, last] = [self.value(from, 2)?, self.value(to, 2)?];
                let to_one = matches!(kind, Translation::Source | Translation::Masquerade) || first == last;
                if !to_one {
                    return Err(self.doubt("which port of a range it is is not known"));
                }
                (first == last).then(|| first.try_into().map_or(0, u16::from_be_bytes))
            }
            None => None,
        };
        let traced = &mut self.traced;
        let leaves = scope.context.out_interface(traced).map(str::to_owned);
        let (node, packet) = (scope.context.node, &mut traced.packet);
        let to = packet.destination.ip();
        let own = |on: Option<&str>| on.and_then(|name| node.address_on(name, to)).or(node.masquerade_address(to));
        let (end, ip) = match kind {
            Translation::Source => (&mut packet.source, ip),
            Translation::Masquerade => (&mut packet.source, own(leaves.as_deref())),
            Translation::Destination => (&mut packet.destination, ip),
            Translation::Redirect if scope.context.hook == "OUTPUT" => {
                (&mut packet.destination, Some(scope.context.family.localhost()))
            }
            Translation::Redirect => (&mut packet.destination, own(Some(scope.context.in_interface))),
        };
        *end = SocketAddr::new(ip.unwrap_or(end.ip()), port.unwrap_or(end.port()));
        match kind {
            Translation::Source | Translation::Masquerade => traced.masqueraded = true,
            Translation::Destination | Translation::Redirect => traced.translated = true,
        }
        traced.settled = true;
        Ok(NextStep::RuleEnd(RuleEnd::Matched(Some(Verdict::Accept))))
    }

    fn address(&self, (from, to): Range, scope: &TableScope<'_>) -> Result<IpAddr, NextStep> {
        let length = if scope.context.family == IpFamily::V4 { 4 } else { 16 };
        let [first, last] = [self.value(from, length)?, self.value(to, length)?];
        if first != last {
            return Err(self.doubt("which address of a range it is is not known"));
        }
        let v4 = || <[u8; 4]>::try_from(first).map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(first).map(IpAddr::from);
        v4().or_else(|_| v6()).map_err(|_| self.doubt("it has no address"))
    }
}

/// What a load takes from the packet's source.
fn source_in(from: Load, family: IpFamily) -> KnownClient {
    match from {
        Load::Payload(PayloadBase::Transport, 0 | 1) => KnownClient::AddressAndPort,
        from if Some(from) == Field::Source(family).load() => KnownClient::Address,
        _ => KnownClient::Unknown,
    }
}

/// The result of a set lookup.
struct SetAnswer<'a> {
    set: &'a Set,
    context: (TableId, Name, Bytes),
    here: bool,
    /// `None`: a rule of this walk added it.
    element: Option<&'a Element>,
}
