//! What differs between the rules of iptables that should be and those that are.
//!
//! In: both, as [`Ruleset`]s. Out: [`Difference`]s, rule by rule. Must not know: how either was made, or how to mend it.
//! Chains and jumps of others are no difference; where the order of rules is chance in kube-proxy, it does not count.

use std::collections::{BTreeSet, HashMap};

use super::align::{Line, aligned, as_sets, best_pairs, words};
use super::{Difference, DifferenceKind};
use crate::family::IpFamily;
use crate::inspect::rules::{Chain, Rule, Ruleset};
use crate::iptables::names;

/// Chains whose rules each match another destination, so that their order is chance in the real kube-proxy.
const UNORDERED: [&str; 5] =
    ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-IPVS-OUT-FILTER"];
/// The kubelet may keep rules of its own in this one.
const SHARED_WITH_KUBELET: &str = "KUBE-FIREWALL";

/// Two rules of a chain are the same without their comments: large clusters leave those out, and chains that did not
/// change since the cluster grew or shrank keep theirs.
impl Line for Rule {
    fn text(&self) -> &str {
        &self.text
    }

    fn essence(&self) -> Vec<&str> {
        without_comment(words(&self.text))
    }

    fn same(&self, other: &Self) -> bool {
        self.text == other.text || {
            let (a, b) = (words(&self.text), words(&other.text));
            a == b || {
                let (bare_a, bare_b) = (without_comment(a.clone()), without_comment(b.clone()));
                bare_a == bare_b && (bare_a.len() == a.len() || bare_b.len() == b.len())
            }
        }
    }
}

/// Compares. `only`: of the chains of Service ports, look at these alone, as the others were not read.
#[must_use]
pub fn differences(expected: &Ruleset, found: &Ruleset, only: Option<&BTreeSet<String>>) -> Vec<Difference> {
    let mut search = Search { family: expected.family(), differences: Vec::new(), owners: owners(expected, found) };
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
        self.compare(table, name, &expected, &found, UNORDERED.contains(&name) || name == SHARED_WITH_KUBELET);
    }

    fn compare(&mut self, table: &str, chain: &str, expected: &[&Rule], found: &[&Rule], unordered: bool) {
        if expected.len() == found.len() && expected.iter().zip(found).all(|(a, b)| a.text == b.text) {
            return;
        }
        let (mut missing, mut extra) = if unordered { as_sets(expected, found) } else { aligned(expected, found) };
        for (a, b) in self.pair(&mut missing, &mut extra, |_, a, b| words(&a.text) == words(&b.text)) {
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

/// A rule's words without its comment, which may be several in quotes.
fn without_comment(mut words: Vec<&str>) -> Vec<&str> {
    let Some(start) = words.iter().position(|word| *word == "--comment").filter(|at| *at > 1) else { return words };
    let quoted = words.get(start + 1).is_some_and(|word| word.starts_with('"'));
    let ends = |word: &&str| !quoted || (word.ends_with('"') && word.len() > 1);
    let end = words[start + 1..].iter().position(ends).map_or(words.len(), |at| start + 2 + at);
    words.drain(start - 2..end);
    words
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
