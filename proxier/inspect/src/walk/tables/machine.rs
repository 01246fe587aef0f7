//! The kernel's instructions, carried out for one packet.
//!
//! In: a rule, a packet on its way. Out: what the rule comes to, once for each way the dice can fall. Must not know: chains.

use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::nft::ruleset::{Element, ElementLookup, Rule, Set, TableId, UnreadPart};
use netfilter::nft::{
    Bytes, Comparison, Expression, Load, Name, Register, Registers as Range, SetOperation, Translation, Value, Verdict,
};

use super::super::chains::Traveller;
use super::super::path::MOST;
use super::super::{Doubt, MOST_CHOICES};
use super::Spot;
use super::facts::{self, Miss};
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

/// What a rule came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    /// It does not match.
    Passed,
    /// It matches.
    Matched(Option<Verdict>),
    /// It matches and refuses the packet.
    Rejected,
    /// It cannot be told, and why; and which instruction that begins with.
    Doubt(String, usize),
}

/// One way through a rule.
pub(super) struct Run {
    pub(super) traveller: Traveller,
    /// How likely it is.
    pub(super) odds: f64,
    /// The elements that were found.
    pub(super) elements: Vec<String>,
    pub(super) end: End,
}

/// What comes after an instruction.
enum Flow {
    Next,
    End(End),
    /// Each of so many numbers from the least is as likely, and is left in the register.
    Choose(Register, u32, u32),
}

#[derive(Clone)]
struct State {
    traveller: Traveller,
    registers: Registers,
    odds: f64,
    at: usize,
    elements: Vec<String>,
}

/// Carries out a rule. Ways that come to the same are one.
pub(super) fn run(spot: &Spot<'_>, rule: &Rule, mut traveller: Traveller, lacks: &mut Vec<UnreadPart>) -> Vec<Run> {
    // What was met before is not looked at, and is much to copy.
    let steps = std::mem::take(&mut traveller.steps);
    let doubts = std::mem::take(&mut traveller.doubts);
    let mut open = vec![State { traveller, registers: Registers::new(), odds: 1.0, at: 0, elements: Vec::new() }];
    let (mut runs, mut chosen_so_far): (Vec<Run>, usize) = (Vec::new(), 0);
    while let Some(mut state) = open.pop() {
        let flow = loop {
            let Some(expression) = rule.expressions.get(state.at) else { break Flow::End(End::Matched(None)) };
            match state.execute(expression, spot, lacks) {
                Flow::Next => state.at += 1,
                flow => break flow,
            }
        };
        match flow {
            Flow::Next => {}
            Flow::End(end) => add(&mut runs, state, end),
            Flow::Choose(_, modulus, _) if chosen_so_far > MOST => {
                let why = format!("a choice among {modulus} for each of {chosen_so_far} others is not followed");
                let at = state.at;
                add(&mut runs, state, End::Doubt(why, at));
            }
            Flow::Choose(to, modulus, offset) => {
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
        run.traveller.probability *= run.odds;
        run.traveller.steps = steps.clone();
        run.traveller.doubts.splice(..0, doubts.iter().cloned());
    }
    runs
}

fn add(runs: &mut Vec<Run>, state: State, end: End) {
    let State { traveller, odds, mut elements, .. } = state;
    if matches!(end, End::Passed | End::Doubt(..)) {
        elements.clear();
    }
    let same = |run: &&mut Run| run.end == end && run.elements == elements && run.traveller.is_like(&traveller);
    match runs.iter_mut().find(same) {
        Some(run) => run.odds += odds,
        None => runs.push(Run { traveller, odds, elements, end }),
    }
}

impl State {
    fn doubt(&self, why: impl Into<String>) -> Flow {
        Flow::End(End::Doubt(why.into(), self.at))
    }

    fn goes_on(&self, holds: bool) -> Flow {
        if holds { Flow::Next } else { Flow::End(End::Passed) }
    }

    /// The value in a register, or the doubt that there is none.
    fn value(&self, at: Register, length: usize) -> Result<&[u8], Flow> {
        self.registers.load(at, length).ok_or_else(|| self.doubt("it looks at something that it did not load"))
    }

    fn changed(&self, done: Option<()>) -> Flow {
        done.map_or_else(|| self.doubt("it changes something that it did not load"), |()| Flow::Next)
    }

    fn execute(&mut self, expression: &Expression, spot: &Spot<'_>, lacks: &mut Vec<UnreadPart>) -> Flow {
        self.carry_out(expression, spot, lacks).unwrap_or_else(|flow| flow)
    }

    fn carry_out(
        &mut self,
        expression: &Expression,
        spot: &Spot<'_>,
        lacks: &mut Vec<UnreadPart>,
    ) -> Result<Flow, Flow> {
        let size = |length: u32| usize::try_from(length).unwrap_or(usize::MAX);
        Ok(match expression {
            Expression::Load {
                from: Load::Random { modulus, offset } | Load::Incremental { modulus, offset },
                to,
                ..
            }
            | Expression::Hash { modulus, offset, to, .. } => self.choose(*to, *modulus, *offset),
            Expression::Load { from, width, to } => match facts::load(*from, *width, &self.traveller, spot) {
                Ok(value) => {
                    self.registers.store(*to, &value);
                    Flow::Next
                }
                Err(Miss::None) => Flow::End(End::Passed),
                Err(Miss::Unknown(why)) => self.doubt(why),
            },
            Expression::Immediate { to, value } => {
                self.registers.store(*to, value);
                Flow::Next
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
                return self.lookup(spot, lacks, (set, *key), (*to, *verdict, *not));
            }
            Expression::Dynset { set, operation, key, .. } => return self.remember(spot, lacks, set, *operation, *key),
            _ => return self.act(expression, spot),
        })
    }

    fn choose(&mut self, to: Register, modulus: u32, offset: u32) -> Flow {
        match modulus {
            1 => {
                self.registers.store(to, &offset.to_ne_bytes());
                Flow::Next
            }
            2..=MOST_CHOICES => Flow::Choose(to, modulus, offset),
            _ => self.doubt(format!("a choice among {modulus} is not followed")),
        }
    }

    /// What the table says of a key: as the kernel holds it, and as rules changed it on the way.
    fn find<'a>(
        &self,
        spot: &Spot<'a>,
        lacks: &mut Vec<UnreadPart>,
        name: &str,
        at: Register,
    ) -> Result<Asked<'a>, Flow> {
        let Some((name, set)) = spot.table.sets.get_key_value(name) else {
            lacks.push(UnreadPart::Set(spot.id.clone(), name.into()));
            return Err(Flow::End(End::Passed));
        };
        let key = self.value(at, set.key_length())?;
        let place = (spot.id.clone(), name.clone(), key.into());
        if let Some(here) = self.traveller.changed.get(&place) {
            return Ok(Asked { set, place, here: *here, element: None });
        }
        let element = match set.find(key) {
            ElementLookup::Present(element) => Some(element),
            ElementLookup::Absent => None,
            ElementLookup::Unread => {
                lacks.push(UnreadPart::Key(place.0.clone(), place.1.clone(), place.2.clone()));
                None
            }
        };
        Ok(Asked { set, place, here: element.is_some(), element })
    }

    fn lookup(
        &mut self,
        spot: &Spot<'_>,
        lacks: &mut Vec<UnreadPart>,
        (set, key): (&str, Register),
        (to, verdict, not): (Option<Register>, bool, bool),
    ) -> Result<Flow, Flow> {
        let asked = self.find(spot, lacks, set, key)?;
        if asked.here == not {
            return Ok(Flow::End(End::Passed));
        }
        let Some(element) = asked.element else { return Ok(Flow::Next) };
        self.elements.push(asked.set.text(element).to_string());
        Ok(match (&element.value, to) {
            (Some(Value::Data(value)), Some(to)) => {
                self.registers.store(to, value);
                Flow::Next
            }
            (Some(Value::Verdict(Verdict::Continue)), None) => Flow::Next,
            (Some(Value::Verdict(found)), None) if verdict => Flow::End(End::Matched(Some(found.clone()))),
            (None, _) if verdict || to.is_some() => self.doubt(format!("an element of {set} has no value")),
            _ => Flow::Next,
        })
    }

    /// Changes a set; later rules see it so.
    fn remember(
        &mut self,
        spot: &Spot<'_>,
        lacks: &mut Vec<UnreadPart>,
        set: &str,
        operation: SetOperation,
        key: Register,
    ) -> Result<Flow, Flow> {
        let asked = self.find(spot, lacks, set, key)?;
        let adds = operation != SetOperation::Delete;
        self.traveller.changed.insert(asked.place, adds);
        if adds {
            self.traveller.remembered.insert(set.to_owned());
        }
        // To delete what is not there does not end the rule.
        Ok(Flow::Next)
    }

    /// What does something, or only looks on.
    fn act(&mut self, expression: &Expression, spot: &Spot<'_>) -> Result<Flow, Flow> {
        let number =
            |state: &Self, from| state.value(from, 4).map(|value| value.try_into().map_or(0, u32::from_ne_bytes));
        Ok(match expression {
            Expression::SetMark { from } => {
                self.traveller.mark = number(self, *from)?;
                self.traveller.mark_unknown = None;
                Flow::Next
            }
            Expression::SetConnectionMark { from } => {
                self.traveller.connection_mark = Some(number(self, *from)?);
                Flow::Next
            }
            Expression::SetOther { of: "ct", key: ZONE, .. } => {
                let why = "answers are looked up in another zone of connections, which is not followed";
                let hook = format!("{} ({})", spot.id, spot.place.hook.to_lowercase());
                self.traveller.doubt(Doubt::new(hook, "ct zone set", why));
                Flow::Next
            }
            Expression::NoTrack => {
                // Connection tracking has the packet already: it stays as it is.
                self.traveller.untracked |= !spot.tracked;
                Flow::Next
            }
            Expression::Verdict(Verdict::Continue) => Flow::Next,
            Expression::Verdict(verdict) => Flow::End(End::Matched(Some(verdict.clone()))),
            Expression::Dnat { family, address, port } => {
                let (address, port) = (Some((*address, *address)), Some((*port, *port)));
                return self.translate(spot, Translation::Destination, *family, [address, port], 0);
            }
            Expression::Translate { kind, family, address, port, flags } => {
                return self.translate(spot, *kind, *family, [*address, *port], *flags);
            }
            Expression::Masquerade { .. } => return self.translate(spot, Translation::Masquerade, 0, [None, None], 0),
            Expression::Reject { .. } => Flow::End(End::Rejected),
            // Who does not speak TCP is not told.
            Expression::RejectWith { kind: RESET, .. } if self.traveller.packet.protocol != Protocol::Tcp => {
                Flow::End(End::Matched(Some(Verdict::Drop)))
            }
            Expression::RejectWith { .. } => Flow::End(End::Rejected),
            Expression::Unknown(name) => self.doubt(format!("{name} is not known here")),
            _ => Flow::Next,
        })
    }

    /// Gives the connection another address, which ends the base chain.
    fn translate(
        &mut self,
        spot: &Spot<'_>,
        kind: Translation,
        family: u8,
        [address, port]: [Option<Range>; 2],
        flags: u32,
    ) -> Result<Flow, Flow> {
        // In tables of both families nft names neither where only a port is given, and the kernel takes that for any.
        if ![0, INET, spot.place.family.nfproto()].contains(&family) {
            return Ok(Flow::Next);
        }
        let hooks: &[&str] = match kind {
            Translation::Source => &["POSTROUTING", "INPUT"],
            Translation::Destination | Translation::Redirect => &["PREROUTING", "OUTPUT"],
            Translation::Masquerade => &["POSTROUTING"],
        };
        if !spot.nat || !hooks.contains(&spot.place.hook) || flags & NETMAP != 0 {
            return Err(self.doubt("this translation is not known here"));
        }
        let ip = match address {
            Some(range) => Some(self.address(range, spot)?),
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
        let traveller = &mut self.traveller;
        let (node, packet) = (spot.place.node, &mut traveller.packet);
        let to = packet.destination.ip();
        let own = |on: Option<&str>| on.and_then(|name| node.address_on(name, to)).or(node.masquerade_address(to));
        let (end, ip) = match kind {
            Translation::Source => (&mut packet.source, ip),
            Translation::Masquerade => (&mut packet.source, own(spot.place.out_interface(to))),
            Translation::Destination => (&mut packet.destination, ip),
            Translation::Redirect if spot.place.hook == "OUTPUT" => {
                (&mut packet.destination, Some(spot.place.family.localhost()))
            }
            Translation::Redirect => (&mut packet.destination, own(Some(spot.place.in_interface))),
        };
        *end = SocketAddr::new(ip.unwrap_or(end.ip()), port.unwrap_or(end.port()));
        match kind {
            Translation::Source | Translation::Masquerade => traveller.masqueraded = true,
            Translation::Destination | Translation::Redirect => traveller.translated = true,
        }
        traveller.settled = true;
        Ok(Flow::End(End::Matched(Some(Verdict::Accept))))
    }

    fn address(&self, (from, to): Range, spot: &Spot<'_>) -> Result<IpAddr, Flow> {
        let length = if spot.place.family == IpFamily::V4 { 4 } else { 16 };
        let [first, last] = [self.value(from, length)?, self.value(to, length)?];
        if first != last {
            return Err(self.doubt("which address of a range it is is not known"));
        }
        let v4 = || <[u8; 4]>::try_from(first).map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(first).map(IpAddr::from);
        v4().or_else(|_| v6()).map_err(|_| self.doubt("it has no address"))
    }
}

/// What a set says of a key.
struct Asked<'a> {
    set: &'a Set,
    place: (TableId, Name, Bytes),
    here: bool,
    /// `None` where a rule put it there just now.
    element: Option<&'a Element>,
}
