//! Follows a kube-proxy's chains for packets to one destination.
//!
//! The result has the possible endpoints with their probabilities, masquerading, session affinity, source ranges, and the
//! chains and elements on the path. Names of chains are not interpreted, so both layouts are read alike.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use netfilter::IpFamily;
use netfilter::nft::ruleset::{Element, ElementLookup, Rule, Set, Table};
use netfilter::nft::{Bytes, Expression, Field, Key, Load, Name, PayloadBase, Register, SetOperation, Value, Verdict};

use crate::walk::{MOST_CHOICES, MOST_SLOTS};

/// The deepest nesting of chains that is followed; the kernel allows 16.
const DEEPEST: usize = 16;
/// Limit of chains followed from one chain. Nested choices multiply, and a chain with session affinity may jump to itself
/// while it is read.
const MOST_CHAINS: usize = 100_000;

/// Whether a choice is small enough to follow: `keys` elements for each of `modulus` numbers.
fn is_few(keys: usize, modulus: u32, most: u32) -> bool {
    u32::try_from(keys).is_ok_and(|keys| keys.saturating_mul(modulus) <= most)
}

/// A destination of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The address; `None`: any of the node's own.
    pub ip: Option<IpAddr>,
    /// The IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

impl Destination {
    /// The key of the destination in the address maps.
    #[must_use]
    pub fn key(self) -> Bytes {
        self.ip.into_iter().fold(Key::default(), Key::address).protocol(self.protocol).port(self.port).build()
    }
}

/// An endpoint that a packet may go to.
#[derive(Clone, Debug)]
pub struct EndpointChoice {
    /// The probability, 0 to 1.
    pub share: f64,
    /// The endpoint.
    pub to: SocketAddr,
    /// Its chain, if it has one.
    pub chain: Option<Name>,
}

/// A chain that chooses among endpoints.
#[derive(Clone, Debug)]
pub struct Chooser {
    /// The chain's name.
    pub chain: Name,
    /// The endpoints to choose from.
    pub choices: Vec<EndpointChoice>,
    /// Whether a hash of the client chooses, so that shares are those of many clients.
    pub by_hash: bool,
}

/// The rules and elements that packets to one destination meet, summarized.
#[derive(Clone, Debug, Default)]
pub struct DispatchSummary<'a> {
    /// The chains that choose an endpoint.
    pub choosers: Vec<Chooser>,
    /// Whether packets from any sender are marked for masquerading.
    pub marks_all: bool,
    /// Whether some packets are rejected.
    pub rejects: bool,
    /// The session affinity timeout, in seconds.
    pub affinity: Option<u64>,
    /// The endpoints of clients with session affinity, and whether a chain for local endpoints selects them.
    pub remembered: BTreeSet<(bool, SocketAddr)>,
    /// The endpoints for which rules add clients to a session affinity set.
    pub remembering: BTreeSet<SocketAddr>,
    /// The allowed source networks; empty: all.
    pub ranges: Vec<IpNet>,
    /// The chains, in the order in which packets meet them.
    pub chains: Vec<Name>,
    /// The elements that match, with the names of their sets and maps.
    pub elements: Vec<(Name, &'a Element)>,
    /// Keys that were looked up and not read, and the sets.
    pub unread: Vec<(Name, Bytes)>,
}

/// The contents of a register.
#[derive(Clone, Debug)]
enum RegisterValue {
    Known(Vec<u8>),
    /// A random number, or the slot of a hash.
    Chosen {
        modulus: u32,
        offset: u32,
        /// The limit of numbers to follow.
        most: u32,
    },
    /// The packet mark, which does not depend on the sender.
    Mark,
    Unknown,
}

/// The state while one rule is followed.
#[derive(Default)]
struct RuleState<'a> {
    registers: BTreeMap<u8, RegisterValue>,
    /// Whether the rule tests the sender, so that not all packets continue.
    conditional: bool,
    /// The elements that a map may have for the packet, with probabilities; `None`: no element.
    chosen: Vec<(f64, Option<&'a Element>)>,
    /// Whether a random number selects the element, if there are several.
    by_chance: bool,
    /// Whether that number is a hash.
    by_hash: bool,
    /// The register whose masked bits are compared, and the mask.
    net: Option<(u8, Vec<u8>)>,
}

/// Follows packets to a destination, starting with a chain.
#[must_use]
pub fn summarize<'a>(family: IpFamily, table: &'a Table, to: Destination, chain: &Name) -> DispatchSummary<'a> {
    summarize_within(family, table, to, chain, 0, &mut 0)
}

/// Follows a chain at the given depth, after `followed` other chains.
fn summarize_within<'a>(
    family: IpFamily,
    table: &'a Table,
    to: Destination,
    chain: &Name,
    depth: usize,
    followed: &mut usize,
) -> DispatchSummary<'a> {
    let summary = DispatchSummary::default();
    let mut walk = Walk { family, table, to, summary, remembers: false, left: 1.0, followed: *followed };
    walk.follow(chain, None, depth, false);
    *followed = walk.followed;
    walk.summary
}

struct Walk<'a> {
    family: IpFamily,
    table: &'a Table,
    to: Destination,
    summary: DispatchSummary<'a>,
    /// Whether the current chain adds the client to a session affinity set.
    remembers: bool,
    /// The share of packets in the current chain that no map has assigned an endpoint yet, 0 to 1.
    left: f64,
    /// The number of chains followed so far.
    followed: usize,
}

/// The chooser that a chain is a choice of, with the probability.
type ParentChooser = Option<(usize, f64)>;

impl<'a> Walk<'a> {
    fn follow(&mut self, chain: &Name, within: ParentChooser, depth: usize, conditional: bool) {
        let before = (std::mem::replace(&mut self.left, 1.0), std::mem::take(&mut self.remembers));
        self.follow_rules(chain, within, depth, conditional);
        (self.left, self.remembers) = before;
    }

    fn follow_rules(&mut self, chain: &Name, within: ParentChooser, depth: usize, mut conditional: bool) {
        let table = self.table;
        let may_follow = depth < DEEPEST && self.followed < MOST_CHAINS;
        let Some(held) = table.chains.get(chain).filter(|_| may_follow) else { return };
        self.followed += 1;
        match self.summary.chains.contains(chain) {
            // Several rules may jump to a chain that chooses.
            true if within.is_none() => return,
            true => {}
            false => self.summary.chains.push(chain.clone()),
        }
        for rule in held.rules.iter().flatten() {
            match self.rule(chain, rule, within, depth, conditional) {
                Some(ends) if ends => return,
                Some(_) => {}
                // Some packets have left the chain, so the following rules do not see all of them.
                None => conditional = true,
            }
        }
    }

    /// Whether the rule ends the walk; `None`: for some packets.
    fn rule(
        &mut self,
        chain: &Name,
        rule: &'a Rule,
        within: ParentChooser,
        depth: usize,
        conditional: bool,
    ) -> Option<bool> {
        let mut step = RuleState { conditional, ..RuleState::default() };
        for expression in &rule.expressions {
            match expression {
                Expression::Load { from, to, .. } => _ = step.registers.insert(to.0, self.load(*from)),
                // Over all clients, each number is as likely as the others.
                Expression::Hash { to, modulus, offset, .. } => {
                    step.by_hash = true;
                    let number = RegisterValue::Chosen { modulus: *modulus, offset: *offset, most: MOST_SLOTS };
                    _ = step.registers.insert(to.0, number);
                }
                Expression::Immediate { to, value } => {
                    _ = step.registers.insert(to.0, RegisterValue::Known(value.clone()))
                }
                Expression::Bitwise { register, mask, xor } => step.bitwise(*register, mask, xor),
                Expression::Compare { register, not, value }
                    if !self.compare(&mut step, *register, *not, value, rule) =>
                {
                    return Some(false);
                }
                Expression::SetMark { .. } => self.summary.marks_all |= !step.conditional,
                Expression::Lookup { set, to: None, verdict: false, not, .. } => {
                    let set = self.table.sets.get(set)?;
                    // Clients with session affinity go to an endpoint that other clients may get too.
                    if set.is_dynamic() {
                        self.remembered(chain, rule, depth);
                        return Some(false);
                    }
                    if *not && set.is_anonymous() && drops(rule) {
                        self.summary.ranges.extend(set.elements.iter().flat_map(networks));
                    }
                    step.conditional = true;
                }
                Expression::Lookup { set, key, verdict, .. } => {
                    self.look_up(&mut step, set, self.table.sets.get(set)?, *key);
                    if *verdict {
                        return self.verdicts(chain, &step, within, depth);
                    }
                }
                Expression::Dnat { address, port, .. } => {
                    let port = Some(*port);
                    return Some(self.translate(chain, &step, (*address, port), within));
                }
                Expression::Dynset { set, operation: SetOperation::Update, timeout, .. } => {
                    self.remember_clients(set, *timeout);
                }
                Expression::Reject { .. } | Expression::RejectWith { .. } => {
                    self.summary.rejects = true;
                    return Some(!step.conditional);
                }
                Expression::Verdict(verdict) => {
                    if let Some(to) = verdict.chain() {
                        self.follow(to, within, depth + 1, step.conditional);
                    }
                    let ends = !matches!(verdict, Verdict::Jump(_)) && !step.conditional;
                    return Some(ends);
                }
                _ => {}
            }
        }
        Some(false)
    }

    /// Records that a rule remembers clients, and for how long: the timeout of the rule in milliseconds, or the set's.
    fn remember_clients(&mut self, set: &Name, timeout: u64) {
        let of_set = self.table.sets.get(set).map_or(0, |set| set.timeout);
        let seconds = if timeout > 0 { timeout } else { of_set } / 1000;
        self.summary.affinity = Some(seconds).filter(|seconds| *seconds > 0).or(self.summary.affinity);
        self.remembers = true;
    }

    /// Records the endpoints of clients with session affinity.
    fn remembered(&mut self, chain: &Name, rule: &Rule, depth: usize) {
        let verdict = rule.expressions.iter().find_map(|expression| match expression {
            Expression::Verdict(verdict) => verdict.chain(),
            _ => None,
        });
        let Self { family, table, to, followed, .. } = self;
        let found = verdict.map(|chain| summarize_within(*family, table, *to, chain, depth + 1, followed));
        let found = found.unwrap_or_default();
        let local = super::is_local(chain);
        let choices = found.choosers.iter().flat_map(|chooser| &chooser.choices);
        self.summary.remembered.extend(choices.map(|choice| (local, choice.to)));
        self.summary.unread.extend(found.unread);
    }

    fn load(&self, from: Load) -> RegisterValue {
        match (from, self.to.ip) {
            (Load::Protocol, _) => RegisterValue::Known(vec![self.to.protocol]),
            (Load::Payload(PayloadBase::Transport, 2), _) => RegisterValue::Known(self.to.port.to_be_bytes().to_vec()),
            (from, Some(ip)) if Some(from) == Field::Destination(self.family).load() => {
                RegisterValue::Known(octets(ip))
            }
            (Load::Random { modulus, offset }, _) => RegisterValue::Chosen { modulus, offset, most: MOST_CHOICES },
            (Load::Mark, _) => RegisterValue::Mark,
            _ => RegisterValue::Unknown,
        }
    }

    /// Whether packets to the destination may match the comparison.
    fn compare(&mut self, step: &mut RuleState<'a>, register: Register, not: bool, value: &[u8], rule: &Rule) -> bool {
        match step.registers.get(&register.0) {
            Some(RegisterValue::Known(held)) => (held.get(..value.len()) == Some(value)) != not,
            Some(RegisterValue::Mark) => true,
            _ => {
                step.conditional = true;
                if not && drops(rule) {
                    let mask = step.net.take().filter(|(of, _)| *of == register.0).map(|(_, mask)| mask);
                    self.summary.ranges.extend(network(self.family, value, mask.as_deref()));
                }
                true
            }
        }
    }

    /// Looks up the packet in a map. A key with a random number has one result for each number.
    fn look_up(&mut self, step: &mut RuleState<'a>, name: &Name, set: &'a Set, key: Register) {
        let mut at = key.0;
        let mut keys: Vec<Vec<u8>> = vec![Vec::new()];
        for part in &set.key {
            let values: Vec<Vec<u8>> = match step.registers.get(&at) {
                Some(RegisterValue::Known(value)) => vec![value.clone()],
                Some(RegisterValue::Chosen { modulus, offset, most }) if is_few(keys.len(), *modulus, *most) => {
                    step.by_chance = true;
                    (0..(*modulus).max(1)).map(|number| number.wrapping_add(*offset).to_ne_bytes().to_vec()).collect()
                }
                _ => {
                    step.conditional = true;
                    return;
                }
            };
            let padded = part.padded();
            let with = |key: &Vec<u8>, value: &Vec<u8>| {
                let mut longer = key.clone();
                longer.extend(value);
                longer.resize(key.len() + padded, 0);
                longer
            };
            keys = keys.iter().flat_map(|key| values.iter().map(move |value| with(key, value))).collect();
            at = at.saturating_add(u8::try_from(padded / 4).unwrap_or(u8::MAX));
        }
        #[allow(clippy::cast_precision_loss)] // endpoints are few
        let share = 1.0 / keys.len() as f64;
        let unread = &mut self.summary.unread;
        let mut find = |key: &Vec<u8>| match set.find(key) {
            ElementLookup::Present(element) => Some(element),
            ElementLookup::Absent => None,
            ElementLookup::Unread => {
                unread.push((name.clone(), key.as_slice().into()));
                None
            }
        };
        step.chosen = keys.iter().map(|key| (share, find(key))).collect();
        // The slots of a hash are too many to show.
        if !set.is_anonymous() && !step.by_hash {
            self.summary
                .elements
                .extend(step.chosen.iter().filter_map(|(_, element)| Some((name.clone(), (*element)?))));
        }
    }

    /// Follows the verdicts that a map lookup returned.
    fn verdicts(&mut self, chain: &Name, step: &RuleState<'a>, within: ParentChooser, depth: usize) -> Option<bool> {
        let to = if step.by_chance { Some((self.chooser(chain, within), 1.0)) } else { within };
        for (share, element) in &step.chosen {
            if let Some(Value::Verdict(verdict)) = element.and_then(|element| element.value.as_ref())
                && let Some(next) = verdict.chain()
            {
                self.follow(next, to.map(|(at, of)| (at, of * share)), depth + 1, step.conditional);
            }
        }
        let hits = step.chosen.iter().any(|(_, element)| element.is_some());
        if step.conditional && hits { None } else { Some(hits) }
    }

    /// The chooser that a chain is, or is a choice of.
    fn chooser(&mut self, chain: &Name, within: ParentChooser) -> usize {
        if let Some((at, _)) = within {
            return at;
        }
        let known = self.summary.choosers.iter().position(|chooser| chooser.chain == *chain);
        known.unwrap_or_else(|| {
            self.summary.choosers.push(Chooser { chain: chain.clone(), choices: Vec::new(), by_hash: false });
            self.summary.choosers.len() - 1
        })
    }

    /// Records the endpoints of a translation. Returns whether all packets are translated.
    fn translate(
        &mut self,
        chain: &Name,
        step: &RuleState<'a>,
        (address, port): (Register, Option<Register>),
        within: ParentChooser,
    ) -> bool {
        let at = self.chooser(chain, within);
        let of = within.map_or(1.0, |(_, share)| share) * self.left;
        let own = within.is_some().then(|| chain.clone());
        let known = |register: Register| match step.registers.get(&register.0) {
            Some(RegisterValue::Known(value)) => Some(value.as_slice()),
            _ => None,
        };
        let found: Vec<(f64, Option<SocketAddr>)> = if step.chosen.is_empty() {
            let port = port.and_then(known).and_then(|port| Some(u16::from_be_bytes([*port.first()?, *port.get(1)?])));
            vec![(1.0, known(address).and_then(ip).zip(port).map(SocketAddr::from))]
        } else {
            step.chosen.iter().map(|(share, element)| (*share, element.and_then(endpoint))).collect()
        };
        let all = found.iter().all(|(_, to)| to.is_some());
        self.left *= found.iter().filter(|(_, to)| to.is_none()).map(|(share, _)| share).sum::<f64>();
        if self.remembers {
            self.summary.remembering.extend(found.iter().filter_map(|(_, to)| *to));
        }
        let choices = found.into_iter().filter_map(|(share, to)| Some((share * of, to?)));
        let choices = choices.map(|(share, to)| EndpointChoice { share, to, chain: own.clone() });
        self.summary.choosers[at].choices.extend(choices);
        self.summary.choosers[at].by_hash |= step.by_hash;
        all && !step.conditional
    }
}

impl RuleState<'_> {
    fn bitwise(&mut self, register: Register, mask: &[u8], xor: &[u8]) {
        match self.registers.get_mut(&register.0) {
            Some(RegisterValue::Known(value)) => {
                for ((byte, mask), xor) in value.iter_mut().zip(mask).zip(xor) {
                    *byte = (*byte & mask) ^ xor;
                }
            }
            _ => self.net = Some((register.0, mask.to_vec())),
        }
    }
}

/// Whether a rule drops what it matches.
fn drops(rule: &Rule) -> bool {
    rule.expressions.iter().any(|expression| matches!(expression, Expression::Verdict(Verdict::Drop)))
}

/// An address in network byte order.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The address of 4 or 16 bytes in network byte order.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The endpoint in a map element's data.
pub fn endpoint(element: &Element) -> Option<SocketAddr> {
    let Some(Value::Data(bytes)) = &element.value else { return None };
    let (address, port) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    Some((ip(address)?, u16::from_be_bytes([port[0], port[1]])).into())
}

/// The network that a comparison tests. nft masks nothing for a whole address, and loads fewer bytes for a prefix of whole
/// bytes.
fn network(family: IpFamily, value: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let width = Field::Source(family).width();
    let ones = |mask: &[u8]| mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
    let whole = u32::try_from(value.len() * 8).ok()?;
    let length = u8::try_from(mask.map_or(whole, ones)).ok()?;
    let mut address = value.to_vec();
    address.resize(width, 0);
    IpNet::new(ip(&address)?, length).ok()
}

/// The networks of an element in a set of addresses.
fn networks(element: &Element) -> Vec<IpNet> {
    between(&element.key, element.end.as_deref().unwrap_or(&element.key))
}

/// The networks that cover a range of addresses.
pub fn between(first: &[u8], last: &[u8]) -> Vec<IpNet> {
    match (ip(first), ip(last)) {
        (Some(IpAddr::V4(a)), Some(IpAddr::V4(b))) => Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect(),
        (Some(IpAddr::V6(a)), Some(IpAddr::V6(b))) => Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
