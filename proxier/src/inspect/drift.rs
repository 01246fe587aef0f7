//! What differs between the rules that should be and those that are.
//!
//! In: both, as [`Ruleset`]s. Out: [`Difference`]s, rule by rule. Must not know: how either was made, or how to mend it.
//! Chains and jumps of others are no difference; where the order of rules is chance in kube-proxy, it does not count.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::rules::{Chain, Rule, Ruleset};
use crate::family::IpFamily;
use crate::iptables::names;

/// Chains whose rules each match another destination, so that their order is chance in the real kube-proxy.
const UNORDERED: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];
/// The same in IPVS mode, whose other rules ask sets.
const UNORDERED_IN_IPVS: [&str; 1] = ["KUBE-IPVS-OUT-FILTER"];
/// The chain that tells that these are rules of IPVS mode.
const OF_IPVS: &str = "KUBE-IPVS-FILTER";
/// The kubelet may keep rules of its own in this one.
const SHARED_WITH_KUBELET: &str = "KUBE-FIREWALL";
/// Above so many pairs of rules an exact alignment costs too much.
const MOST_PAIRS: usize = 4_000_000;

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// A table that should be there was not read, or is not there.
    MissingTable,
    /// A chain that should be there.
    MissingChain,
    /// A chain of a Service port that should not be there.
    UnexpectedChain,
    /// A rule that should be there.
    MissingRule,
    /// A rule that should not be there.
    UnexpectedRule,
    /// A rule that reads otherwise than it should.
    AlteredRule,
    /// A rule that stands elsewhere in its chain.
    MovedRule,
    /// A virtual server that should be there.
    MissingVirtualServer,
    /// A virtual server that should not be there.
    UnexpectedVirtualServer,
    /// A virtual server that schedules otherwise than it should.
    AlteredVirtualServer,
    /// A real server that should be there.
    MissingRealServer,
    /// A real server that should not be there.
    UnexpectedRealServer,
    /// A real server with another weight or way of forwarding than it should have.
    AlteredRealServer,
    /// A set that should be there.
    MissingSet,
    /// An entry that a set should have.
    MissingEntry,
    /// An entry that a set should not have.
    UnexpectedEntry,
    /// The device that should be there.
    MissingDevice,
    /// An address that the device should have.
    MissingAddress,
    /// An address that the device should not have.
    UnexpectedAddress,
}

impl DifferenceKind {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MissingTable => "missing table",
            Self::MissingChain => "missing chain",
            Self::UnexpectedChain => "unexpected chain",
            Self::MissingRule => "missing rule",
            Self::UnexpectedRule => "unexpected rule",
            Self::AlteredRule => "altered rule",
            Self::MovedRule => "moved rule",
            Self::MissingVirtualServer => "missing virtual server",
            Self::UnexpectedVirtualServer => "unexpected virtual server",
            Self::AlteredVirtualServer => "altered virtual server",
            Self::MissingRealServer => "missing real server",
            Self::UnexpectedRealServer => "unexpected real server",
            Self::AlteredRealServer => "altered real server",
            Self::MissingSet => "missing set",
            Self::MissingEntry => "missing entry",
            Self::UnexpectedEntry => "unexpected entry",
            Self::MissingDevice => "missing device",
            Self::MissingAddress => "missing address",
            Self::UnexpectedAddress => "unexpected address",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// What kind.
    pub kind: DifferenceKind,
    /// The table of iptables, or [`SERVERS`], [`SETS`] or [`DEVICE`].
    pub table: String,
    /// The chain, the virtual server, the set or the device.
    pub chain: String,
    /// What should be there, as `iptables-save`, `ipvsadm -S -n` or `ipset save` words it.
    pub expected: Option<String>,
    /// What is there.
    pub found: Option<String>,
    /// The Service port that it is about, where that can be told.
    pub service: Option<String>,
}

/// The table of the kernel's virtual servers.
pub const SERVERS: &str = "ipvs";
/// The kernel's sets.
pub const SETS: &str = "ipset";
/// A network device.
pub const DEVICE: &str = "device";

impl Difference {
    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let Self { table, chain, .. } = self;
        match &**table {
            SERVERS => format!("virtual server {chain}"),
            SETS => format!("set {chain}"),
            DEVICE => format!("device {chain}"),
            _ if chain.is_empty() => format!("table {table}"),
            _ => format!("table {table}, chain {chain}"),
        }
    }

    /// Whether it is in a table of rules.
    #[must_use]
    pub fn is_of_rules(&self) -> bool {
        ![SERVERS, SETS, DEVICE].contains(&&*self.table)
    }
}

/// Compares. `only`: of the chains of Service ports, look at these alone, as the others were not read.
#[must_use]
pub fn differences(expected: &Ruleset, found: &Ruleset, only: Option<&BTreeSet<String>>) -> Vec<Difference> {
    let ipvs = expected.chain("filter", OF_IPVS).is_some();
    let mut search = Search {
        family: expected.family(),
        differences: Vec::new(),
        owners: owners(expected, found),
        unordered: if ipvs { &UNORDERED_IN_IPVS } else { &UNORDERED },
    };
    for table in expected.tables() {
        let Some(held) = found.table(table) else {
            search.note(DifferenceKind::MissingTable, table, "", None, None);
            continue;
        };
        for (name, chain) in expected.chains(table) {
            if only.is_some_and(|only| names::hash_of(name).is_some() && !only.contains(name)) {
                continue;
            }
            match held.get(name) {
                None => search.note(DifferenceKind::MissingChain, table, name, None, None),
                Some(_) if chain.policy.is_some() => search.jumps(table, name, chain, &held[name]),
                Some(is) => search.chain(table, name, chain, is),
            }
        }
        // Those that nothing leads to do no harm: large clusters delete them later.
        let used: BTreeSet<&str> = held.values().flat_map(|chain| &chain.rules).filter_map(Rule::leads_to).collect();
        let ours = used.iter().filter(|name| table == "nat" && names::hash_of(name).is_some());
        for name in ours.filter(|name| held.contains_key(**name) && expected.chain(table, name).is_none()) {
            if only.is_none_or(|only| only.contains(*name)) {
                search.note(DifferenceKind::UnexpectedChain, table, name, None, None);
            }
        }
    }
    search.differences.sort();
    search.differences
}

struct Search {
    family: IpFamily,
    differences: Vec<Difference>,
    /// Which Service port a chain belongs to.
    owners: HashMap<String, String>,
    /// In which chains the order does not count.
    unordered: &'static [&'static str],
}

impl Search {
    fn note(&mut self, kind: DifferenceKind, table: &str, chain: &str, expected: Option<&Rule>, found: Option<&Rule>) {
        let rule = expected.or(found);
        let service = rule.and_then(subject).or_else(|| self.owners.get(chain).cloned());
        self.differences.push(Difference {
            family: self.family.name(),
            kind,
            table: table.to_owned(),
            chain: chain.to_owned(),
            expected: expected.map(|rule| rule.text.to_string()),
            found: found.map(|rule| rule.text.to_string()),
            service,
        });
    }

    /// A built-in chain: our jumps have to be there once, among whatever others have there.
    fn jumps(&mut self, table: &str, name: &str, expected: &Chain, found: &Chain) {
        let targets: BTreeSet<&str> = expected.rules.iter().filter_map(Rule::leads_to).collect();
        let ours: Vec<&Rule> =
            found.rules.iter().filter(|rule| rule.leads_to().is_some_and(|to| targets.contains(to))).collect();
        self.compare(table, name, &expected.rules.iter().collect::<Vec<_>>(), &ours, true);
    }

    fn chain(&mut self, table: &str, name: &str, expected: &Chain, found: &Chain) {
        let expected: Vec<&Rule> = expected.rules.iter().collect();
        let found: Vec<&Rule> = found.rules.iter().collect();
        self.compare(table, name, &expected, &found, self.unordered.contains(&name) || name == SHARED_WITH_KUBELET);
    }

    fn compare(&mut self, table: &str, chain: &str, expected: &[&Rule], found: &[&Rule], unordered: bool) {
        if expected.len() == found.len() && expected.iter().zip(found).all(|(a, b)| a.text == b.text) {
            return;
        }
        let (mut missing, mut extra) = if unordered { as_sets(expected, found) } else { aligned(expected, found) };
        for (a, b) in self.pair(&mut missing, &mut extra, |_, a, b| words(a) == words(b)) {
            self.note(DifferenceKind::MovedRule, table, chain, Some(a), Some(b));
        }
        // The same in other words is the same: another version of the tool may print it so.
        self.pair(&mut missing, &mut extra, |family, a, b| {
            let (a, b) = (a.read(family), b.read(family));
            a == b && a.problem.is_none()
        });
        for (a, b) in best_pairs(&mut missing, &mut extra) {
            self.note(DifferenceKind::AlteredRule, table, chain, Some(a), Some(b));
        }
        for rule in missing {
            self.note(DifferenceKind::MissingRule, table, chain, Some(rule), None);
        }
        for rule in extra.into_iter().filter(|_| chain != SHARED_WITH_KUBELET) {
            self.note(DifferenceKind::UnexpectedRule, table, chain, None, Some(rule));
        }
    }

    /// Takes pairs that belong together out of both lists.
    fn pair<'a>(
        &self,
        missing: &mut Vec<&'a Rule>,
        extra: &mut Vec<&'a Rule>,
        same: impl Fn(IpFamily, &Rule, &Rule) -> bool,
    ) -> Vec<(&'a Rule, &'a Rule)> {
        let mut pairs = Vec::new();
        missing.retain(|rule| match extra.iter().position(|other| same(self.family, rule, other)) {
            Some(at) => {
                pairs.push((*rule, extra.remove(at)));
                false
            }
            None => true,
        });
        pairs
    }
}

/// Which Service port each chain belongs to, by the comments of the rules that lead to it or stand in it.
fn owners(expected: &Ruleset, found: &Ruleset) -> HashMap<String, String> {
    let mut owners = HashMap::new();
    for ruleset in [expected, found] {
        for (name, chain) in ruleset.chains("nat") {
            for rule in &chain.rules {
                let Some(subject) = subject(rule) else { continue };
                if names::hash_of(name).is_some() {
                    owners.entry(name.to_owned()).or_insert_with(|| subject.clone());
                }
                if let Some(to) = rule.leads_to().filter(|to| names::hash_of(to).is_some()) {
                    owners.entry(to.to_owned()).or_insert(subject);
                }
            }
        }
    }
    owners
}

/// The Service port that a rule's comment names.
fn subject(rule: &Rule) -> Option<String> {
    let (_, comment) = rule.text.split_once("--comment ")?;
    let words = comment.trim_start_matches('"').split([' ', '"']);
    words.filter(|word| !word.is_empty()).take(5).find(|word| word.contains('/')).map(str::to_owned)
}

fn words(rule: &Rule) -> Vec<&str> {
    rule.text.split(' ').filter(|word| !word.is_empty()).collect()
}

/// Whether two rules of a chain are the same. Large clusters leave out comments, and chains that did not change since
/// the cluster grew or shrank keep theirs.
fn same(a: &Rule, b: &Rule) -> bool {
    a.text == b.text || {
        let (a, b) = (words(a), words(b));
        a == b || {
            let (bare_a, bare_b) = (without_comment(a.clone()), without_comment(b.clone()));
            bare_a == bare_b && (bare_a.len() == a.len() || bare_b.len() == b.len())
        }
    }
}

/// A rule's words without its comment, which may be several in quotes.
fn without_comment(mut words: Vec<&str>) -> Vec<&str> {
    let Some(start) = words.iter().position(|word| *word == "--comment").filter(|at| *at > 1) else { return words };
    let quoted = words.get(start + 1).is_some_and(|word| word.starts_with('"'));
    let ends = |word: &&str| !quoted || (word.ends_with('"') && word.len() > 1);
    let end = words[start + 1..].iter().position(ends).map_or(words.len(), |at| start + 2 + at);
    words.drain(start - 2..end);
    words
}

/// How much of two rules is the same, in thousandths of the longer one's words.
fn likeness(a: &[&str], b: &[&str]) -> usize {
    let mut left = b.to_vec();
    let common =
        a.iter().filter(|word| left.iter().position(|other| other == *word).map(|at| left.remove(at)).is_some());
    common.count() * 1000 / a.len().max(b.len()).max(1)
}

/// Takes out of both lists pairs of which one was made of the other, as it seems: most of their words are the same. The
/// most alike come first.
fn best_pairs<'a>(missing: &mut Vec<&'a Rule>, extra: &mut Vec<&'a Rule>) -> Vec<(&'a Rule, &'a Rule)> {
    let words_of = |rules: &[&'a Rule]| rules.iter().map(|rule| words(rule)).collect::<Vec<_>>();
    let (all_missing, all_extra) = (words_of(missing), words_of(extra));
    let mut scores = Vec::new();
    for (i, a) in all_missing.iter().enumerate() {
        scores.extend(
            all_extra.iter().enumerate().map(|(j, b)| (likeness(a, b), i, j)).filter(|(score, ..)| *score > 660),
        );
    }
    scores.sort_by_key(|(score, i, j)| (std::cmp::Reverse(*score), *i, *j));
    let (mut used_missing, mut used_extra, mut pairs) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (_, i, j) in scores {
        if !used_missing.contains(&i) && !used_extra.contains(&j) {
            used_missing.insert(i);
            used_extra.insert(j);
            pairs.push((missing[i], extra[j]));
        }
    }
    let keep = |rules: &mut Vec<&'a Rule>, used: &BTreeSet<usize>| {
        let mut at = 0;
        rules.retain(|_| {
            at += 1;
            !used.contains(&(at - 1))
        });
    };
    keep(missing, &used_missing);
    keep(extra, &used_extra);
    pairs
}

type Leftovers<'a> = (Vec<&'a Rule>, Vec<&'a Rule>);

/// What each has and the other has not, whatever the order.
fn as_sets<'a>(expected: &[&'a Rule], found: &[&'a Rule]) -> Leftovers<'a> {
    let mut held: BTreeMap<Vec<&str>, Vec<&'a Rule>> = BTreeMap::new();
    for rule in found.iter().rev() {
        held.entry(words(rule)).or_default().push(rule);
    }
    let missing = expected.iter().filter(|rule| held.get_mut(&words(rule)).and_then(Vec::pop).is_none());
    let missing = missing.copied().collect();
    (missing, held.into_values().flatten().collect())
}

/// What each has and the other has not, in order: the longest common part is what they share.
fn aligned<'a>(expected: &[&'a Rule], found: &[&'a Rule]) -> Leftovers<'a> {
    let start = expected.iter().zip(found).take_while(|(a, b)| same(a, b)).count();
    let (a, b) = (&expected[start..], &found[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| same(a, b)).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    if a.len() * b.len() > MOST_PAIRS {
        return as_sets(a, b);
    }
    // Numbers compare faster than words: the same number, the same words but for the comment.
    let mut numbers: HashMap<Vec<&str>, usize> = HashMap::new();
    let mut number = |rule: &&'a Rule| {
        let next = numbers.len();
        *numbers.entry(without_comment(words(rule))).or_insert(next)
    };
    let a_numbers: Vec<usize> = a.iter().map(&mut number).collect();
    let b_numbers: Vec<usize> = b.iter().map(&mut number).collect();
    let width = b.len() + 1;
    let mut common = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i * width + j] = if a_numbers[i] == b_numbers[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut missing, mut extra) = (0, 0, Vec::new(), Vec::new());
    while i < a.len() && j < b.len() {
        if a_numbers[i] == b_numbers[j] {
            if !same(a[i], b[j]) {
                missing.push(a[i]);
                extra.push(b[j]);
            }
            (i, j) = (i + 1, j + 1);
        } else if common[(i + 1) * width + j] >= common[i * width + j + 1] {
            missing.push(a[i]);
            i += 1;
        } else {
            extra.push(b[j]);
            j += 1;
        }
    }
    missing.extend(&a[i..]);
    extra.extend(&b[j..]);
    (missing, extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(rules: &str) -> Ruleset {
        let declared: BTreeSet<&str> = rules.lines().filter_map(|rule| rule.split(' ').nth(1)).collect();
        let chains = declared.iter().filter(|name| name.contains('-')).map(|name| format!(":{name} - [0:0]\n"));
        let text = format!("*nat\n{}{rules}\nCOMMIT\n", chains.collect::<String>());
        let mut ruleset = Ruleset::new(IpFamily::V4);
        assert_eq!(ruleset.read(&text), []);
        ruleset
    }

    const RULES: &str = "-A PREROUTING -j KUBE-SERVICES\n\
        -A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment --comment \"a/b:c cluster IP\" -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA\n\
        -A KUBE-SERVICES -d 10.0.0.2/32 -p tcp -m comment --comment \"a/d cluster IP\" -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAB\n\
        -A KUBE-SVC-AAAAAAAAAAAAAAAA -m statistic --mode random --probability 0.5 -j KUBE-SEP-AAAAAAAAAAAAAAAA\n\
        -A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAB\n\
        -A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination 1.1.1.1:1";

    fn found(found: &str) -> Vec<(DifferenceKind, Option<String>)> {
        let all = differences(&ruleset(RULES), &ruleset(found), None);
        all.into_iter().map(|difference| (difference.kind, difference.service)).collect()
    }

    #[test]
    fn each_kind_is_told_with_its_service() {
        let one = |kind, service: &str| vec![(kind, Some(service.to_owned()).filter(|s| !s.is_empty()))];
        let lines: Vec<&str> = RULES.lines().collect();
        let without = |at: usize| RULES.replace(&format!("{}\n", lines[at]), "");
        assert_eq!(found(RULES), []);
        assert_eq!(found(&without(0)), one(DifferenceKind::MissingRule, ""));
        assert_eq!(found(&without(1)), one(DifferenceKind::MissingRule, "a/b:c"));
        assert_eq!(found(&without(3)), one(DifferenceKind::MissingRule, "a/b:c"));
        assert_eq!(found(&RULES.replace("1.1.1.1:1", "1.1.1.1:2")), one(DifferenceKind::AlteredRule, ""));
        assert_eq!(found(&RULES.replace("0.5", "0.6")), one(DifferenceKind::AlteredRule, "a/b:c"));
        let swapped = RULES.replace(&format!("{}\n{}", lines[3], lines[4]), &format!("{}\n{}", lines[4], lines[3]));
        assert_eq!(found(&swapped), one(DifferenceKind::MovedRule, "a/b:c"));
        let other_order = RULES.replace(&format!("{}\n{}", lines[1], lines[2]), &format!("{}\n{}", lines[2], lines[1]));
        assert_eq!(found(&other_order), [], "the order there is chance");
        let more = format!("{RULES}\n-A KUBE-SEP-AAAAAAAAAAAAAAAA -j DROP\n-A PREROUTING -j cali-X\n-A cali-X -j DROP");
        assert_eq!(found(&more), one(DifferenceKind::UnexpectedRule, ""));
        let chain = format!("{RULES}\n-A KUBE-SVC-ZZZZZZZZZZZZZZZZ -j DROP");
        assert_eq!(found(&chain), [], "nothing leads there");
        let used = format!("{chain}\n-A KUBE-SERVICES -j KUBE-SVC-ZZZZZZZZZZZZZZZZ");
        assert_eq!(
            found(&used),
            [one(DifferenceKind::UnexpectedChain, ""), one(DifferenceKind::UnexpectedRule, "")].concat()
        );
        let commented = "-m comment --comment \"a/b:c -> x\" -m statistic";
        assert_eq!(found(&RULES.replace("-m statistic", commented)), [], "large clusters leave comments out");
        assert_eq!(found(&RULES.replace("-m statistic --mode", "-m  statistic --mode")), [], "blanks do not count");
        let same = RULES
            .replace("-m statistic --mode random --probability 0.5", "-m statistic --mode random --probability 0.50");
        assert_eq!(found(&same), [], "the same in other words");
    }
}
