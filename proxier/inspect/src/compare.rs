//! Compares expected iptables rules with the rules in the kernel.
//!
//! Both sides are [`Ruleset`]s; the expected one may be given in parts, each of whole chains. Chains and jumps of other
//! programs are no difference. The order of rules is ignored in chains where upstream kube-proxy's order is random.

use std::collections::{BTreeSet, HashMap, HashSet};

use netfilter::IpFamily;

use super::drift::{Difference, DifferenceKind};
use super::rules::{Chain, Rule, Ruleset};
use super::similarity::{RuleText, aligned, as_sets, best_pairs};
use proxier::iptables::names;

/// Chains whose rules match disjoint destinations; upstream kube-proxy's order in them is random.
const UNORDERED: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];
/// Unordered chains in IPVS mode, whose other rules match sets.
const UNORDERED_IN_IPVS: [&str; 1] = ["KUBE-IPVS-OUT-FILTER"];
/// A chain that only IPVS mode has.
const OF_IPVS: &str = "KUBE-IPVS-FILTER";
/// A chain in which the kubelet may keep rules of its own.
const SHARED_WITH_KUBELET: &str = "KUBE-FIREWALL";

/// Limits a comparison to some Service ports. Rules shared by all Service ports are always compared.
#[derive(Clone, Copy)]
pub struct ServiceFilter<'a> {
    /// The chains of Service ports to compare.
    pub chains: &'a BTreeSet<String>,
    /// Selects the Service ports whose dispatch rules are compared.
    pub service: &'a dyn Fn(&str) -> bool,
}

/// Compares two whole rulesets.
#[must_use]
pub fn differences(expected: &Ruleset, found: &Ruleset, only: Option<ServiceFilter<'_>>) -> Vec<Difference> {
    let mut comparison = Comparison::new(found, only);
    if expected.chain("filter", OF_IPVS).is_some() {
        comparison.unordered = &UNORDERED_IN_IPVS;
    }
    let owners = owners(expected);
    comparison.take(expected, &|chain| owners.get(chain).map(|owner| (*owner).to_owned()));
    comparison.finish()
}

/// A comparison in progress, so that the expected rules need not be in memory at once.
pub struct Comparison<'a> {
    found: &'a Ruleset,
    only: Option<ServiceFilter<'a>>,
    /// Chains in which the order of rules is ignored.
    unordered: &'static [&'static str],
    differences: Vec<Difference>,
    /// Expected chains of Service ports that were found.
    seen: HashSet<&'a str>,
}

impl<'a> Comparison<'a> {
    /// A comparison without expected rules yet.
    #[must_use]
    pub fn new(found: &'a Ruleset, only: Option<ServiceFilter<'a>>) -> Self {
        Self { found, only, unordered: &UNORDERED, differences: Vec::new(), seen: HashSet::new() }
    }

    /// Compares some expected chains, each as a whole. `owner`: the Service port that a chain belongs to.
    pub fn take(&mut self, expected: &Ruleset, owner: &dyn Fn(&str) -> Option<String>) {
        let (found, only, unordered) = (self.found, self.only, self.unordered);
        let mut search = Search { family: found.family(), only, unordered, owner, differences: &mut self.differences };
        for table in expected.tables() {
            let Some(held) = found.table(table) else {
                search.note(DifferenceKind::MissingTable, table, "", None, None);
                continue;
            };
            for (name, chain) in expected.chains(table) {
                let of_service = names::hash_of(name).is_some();
                if of_service && only.is_some_and(|only| !only.chains.contains(name)) {
                    continue;
                }
                let Some((held_name, is)) = held.get_key_value(name) else {
                    search.note(DifferenceKind::MissingChain, table, name, None, None);
                    continue;
                };
                if of_service {
                    self.seen.insert(held_name);
                }
                match chain.policy {
                    Some(_) => search.jumps(table, name, chain, is),
                    None => search.chain(table, name, chain, is),
                }
            }
        }
    }

    /// Returns the differences, after all expected chains were compared.
    #[must_use]
    pub fn finish(mut self) -> Vec<Difference> {
        self.unexpected_chains();
        if self.differences.iter().any(|one| one.service.is_none() && names::hash_of(&one.chain).is_some()) {
            let owners = owners(self.found);
            for one in self.differences.iter_mut().filter(|one| one.service.is_none()) {
                one.service = owners.get(&*one.chain).map(|owner| (*owner).to_owned());
            }
        }
        if let Some(only) = self.only {
            self.differences.retain(|one| one.service.as_deref().is_none_or(only.service));
        }
        self.differences.sort();
        // Each part with a missing table reports it.
        self.differences.dedup_by(|a, b| a.kind == DifferenceKind::MissingTable && a == b);
        self.differences
    }

    /// Reports unexpected chains that are referenced. Unreferenced ones are harmless: large clusters delete them later.
    fn unexpected_chains(&mut self) {
        let Some(nat) = self.found.table("nat") else { return };
        let wanted = |name: &str| self.only.is_none_or(|only| only.chains.contains(name));
        let of_service = nat.keys().map(|name| &**name).filter(|name| names::hash_of(name).is_some());
        let strange: Vec<&str> = of_service.filter(|name| !self.seen.contains(name) && wanted(name)).collect();
        if strange.is_empty() {
            return;
        }
        let used: HashSet<&str> = nat.values().flat_map(|chain| &chain.rules).filter_map(Rule::jump_target).collect();
        let (family, only, unordered) = (self.found.family(), self.only, self.unordered);
        let mut search = Search { family, only, unordered, owner: &|_| None, differences: &mut self.differences };
        for name in strange.into_iter().filter(|name| used.contains(name)) {
            search.note(DifferenceKind::UnexpectedChain, "nat", name, None, None);
        }
    }
}

struct Search<'s> {
    family: IpFamily,
    only: Option<ServiceFilter<'s>>,
    unordered: &'static [&'static str],
    owner: &'s dyn Fn(&str) -> Option<String>,
    differences: &'s mut Vec<Difference>,
}

impl Search<'_> {
    fn note(&mut self, kind: DifferenceKind, table: &str, chain: &str, expected: Option<&Rule>, found: Option<&Rule>) {
        let rule = expected.or(found);
        let service = rule.and_then(subject).map(str::to_owned).or_else(|| (self.owner)(chain));
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

    /// Compares a built-in chain: our jumps must be there once, among rules of other programs.
    fn jumps(&mut self, table: &str, name: &str, expected: &Chain, found: &Chain) {
        let targets: BTreeSet<&str> = expected.rules.iter().filter_map(Rule::jump_target).collect();
        let ours: Vec<&Rule> =
            found.rules.iter().filter(|rule| rule.jump_target().is_some_and(|to| targets.contains(to))).collect();
        self.compare(table, name, &expected.rules.iter().collect::<Vec<_>>(), &ours, true);
    }

    fn chain(&mut self, table: &str, name: &str, expected: &Chain, found: &Chain) {
        let dispatch = self.unordered.contains(&name);
        let only = self.only.filter(|_| dispatch);
        let wanted = |rule: &&Rule| only.is_none_or(|only| subject(rule).is_none_or(only.service));
        let expected: Vec<&Rule> = expected.rules.iter().filter(wanted).collect();
        let found: Vec<&Rule> = found.rules.iter().filter(wanted).collect();
        self.compare(table, name, &expected, &found, dispatch || name == SHARED_WITH_KUBELET);
    }

    fn compare(&mut self, table: &str, chain: &str, expected: &[&Rule], found: &[&Rule], unordered: bool) {
        if expected.len() == found.len() && expected.iter().zip(found).all(|(a, b)| a.text == b.text) {
            return;
        }
        let (mut missing, mut extra) = if unordered { as_sets(expected, found) } else { aligned(expected, found) };
        for (a, b) in self.pair(&mut missing, &mut extra, |_, a, b| !unordered && a.same(b)) {
            self.note(DifferenceKind::MovedRule, table, chain, Some(a), Some(b));
        }
        // Rules with the same meaning are equal: versions of iptables print them differently.
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

    /// Removes matching pairs from both lists.
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

/// Maps chains to Service ports by the comments of the rules in them and of the jumps to them.
fn owners(ruleset: &Ruleset) -> HashMap<&str, &str> {
    let mut owners = HashMap::new();
    for (name, chain) in ruleset.chains("nat") {
        for rule in &chain.rules {
            let Some(subject) = subject(rule) else { continue };
            if names::hash_of(name).is_some() {
                owners.entry(name).or_insert(subject);
            }
            if let Some(to) = rule.jump_target().filter(|to| names::hash_of(to).is_some()) {
                owners.entry(to).or_insert(subject);
            }
        }
    }
    owners
}

/// The Service port that a rule's comment names.
fn subject(rule: &Rule) -> Option<&str> {
    let (_, comment) = rule.text.split_once("--comment ")?;
    let words = comment.trim_start_matches('"').split([' ', '"']);
    words.filter(|word| !word.is_empty()).take(5).find(|word| word.contains('/'))
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
    fn a_comparison_of_one_service_finds_the_same_as_one_of_all() {
        let of = |text: &str, service: &str, chains: &[&str]| {
            let (expected, found) = (ruleset(RULES), ruleset(text));
            let all = differences(&expected, &found, None);
            let wanted = |name: &str| name == service;
            let all: Vec<_> = all.into_iter().filter(|one| one.service.as_deref().is_none_or(wanted)).collect();
            let chains = chains.iter().map(|chain| (*chain).to_owned()).collect();
            let mut comparison = Comparison::new(&found, Some(ServiceFilter { chains: &chains, service: &wanted }));
            // In parts, of which only one has the table.
            comparison.take(&Ruleset::new(IpFamily::V4), &|_| None);
            let owners = owners(&expected);
            comparison.take(&expected, &|chain| owners.get(chain).map(|owner| (*owner).to_owned()));
            (comparison.finish(), all)
        };
        let lines: Vec<&str> = RULES.lines().collect();
        let ours = ["KUBE-SVC-AAAAAAAAAAAAAAAA", "KUBE-SEP-AAAAAAAAAAAAAAAA", "KUBE-SEP-AAAAAAAAAAAAAAAB"];
        for line in &lines {
            let without = RULES.replace(line, "-A KUBE-SERVICES -j KUBE-SVC-ZZZZZZZZZZZZZZZZ");
            let (one_service, all) = of(&without, "a/b:c", &ours);
            assert_eq!(one_service, all, "without {line}");
            assert!(one_service.iter().any(|one| one.kind == DifferenceKind::UnexpectedRule), "{one_service:#?}");
        }
        let (one_service, _) = of(&RULES.replace("-d 10.0.0.2/32", "-d 10.0.0.3/32"), "a/b:c", &ours);
        assert_eq!(one_service, [], "another Service's");
    }

    #[test]
    fn each_kind_of_difference_names_its_service() {
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
