//! Finds the Service ports whose rules the tool refuses, in a bounded number of tool runs.
//!
//! The legacy flavour names no line when the kernel refuses, and both flavours name only the first line that the tool
//! itself does not understand. A test of a group shows whether it has a refused port; with hundreds of them, bisection
//! takes thousands of runs. But mostly an extension is missing in the kernel or the tool, or a value is out of range, so
//! Service ports whose rules use the same options with the same values are refused or accepted together.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use netfilter::iptables::{Rule, Table};
use netfilter::kernel::iptables::{IptablesTool, RestoreError};
use netfilter::{Owner, Restore};

use super::names::{MARK_MASQ, PROBE};
use super::render::{PortRules, SHARED};
use super::settings::IptablesSettings;
use crate::model::{CategorizedEndpoints, ServicePortName, Snapshot};

/// A refused Service port and the reason.
pub(super) type Culprit = (ServicePortName, String);

/// The budget of one search: so many tests, or so long if that allows more, but never longer than `TIME_LIMIT`.
///
/// Groups that are not resolved by then are left out as a whole, and resolved in later searches.
const MAX_TESTS: usize = 40;
const MAX_TIME: Duration = Duration::from_secs(10);
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The input of a search.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusalSearch<'a> {
    pub snapshot: &'a Snapshot<'a>,
    pub settings: &'a IptablesSettings,
}

/// Service ports whose rules use the same options.
type Group<'a> = Vec<&'a ServicePortName>;

impl<'a> RefusalSearch<'a> {
    /// The refused Service ports among `candidates`; `None` if unknown: the tool refuses everything, or
    /// fails for another reason than the rules, such as a lock, a timeout or missing memory.
    pub fn culprits(self, tool: &mut dyn IptablesTool, candidates: &[&'a ServicePortName]) -> Option<Vec<Culprit>> {
        let mut run = SearchRun { search: self, tool, tests: 0, begun: Instant::now() };
        run.is_accepted(&[]).filter(|accepted| *accepted)?;
        let culprits = run.culprits(self.groups(candidates));
        run.clean_up();
        culprits
    }

    /// The refused Service ports among those with the same options as an already refused one.
    pub fn similar(
        self,
        tool: &mut dyn IptablesTool,
        refused: &[Culprit],
        candidates: &[&'a ServicePortName],
    ) -> Vec<Culprit> {
        let known: HashSet<u64> = refused.iter().map(|(name, _)| self.signature(name)).collect();
        let similar: Group<'a> =
            candidates.iter().copied().filter(|name| known.contains(&self.signature(name))).collect();
        if similar.is_empty() { Vec::new() } else { self.culprits(tool, &similar).unwrap_or_default() }
    }

    fn groups(self, candidates: &[&'a ServicePortName]) -> Vec<Group<'a>> {
        let mut signed: Vec<_> = candidates.iter().map(|name| (self.signature(name), *name)).collect();
        signed.sort_unstable();
        signed.chunk_by(|a, b| a.0 == b.0).map(|group| group.iter().map(|(_, name)| *name).collect()).collect()
    }

    /// A hash of the options that a Service port's rules use, with the values that Service ports have in common.
    fn signature(self, name: &ServicePortName) -> u64 {
        let mut options = BTreeSet::new();
        let mut text = String::new();
        self.rules(name, &mut |rules| {
            for rule in rules {
                text.clear();
                rule.write_to(&mut text);
                options.insert(options_of(&text));
            }
        });
        let mut hasher = DefaultHasher::new();
        options.hash(&mut hasher);
        hasher.finish()
    }

    fn rules(self, name: &ServicePortName, each: &mut dyn FnMut(&[Rule])) {
        let Some(port) = self.snapshot.ports.get(name) else { return };
        let endpoints = self.snapshot.endpoints.of(name);
        let categorized = CategorizedEndpoints::of(&endpoints, port, self.snapshot.node);
        let mut port_rules = PortRules::new(name, port, &categorized, self.settings, false);
        port_rules.shared().iter().for_each(|rules| each(rules));
        port_rules.own(|_, rules| each(&rules));
    }
}

/// Options whose values differ between Service ports, so that they say nothing about others.
const OF_ONE_PORT: [&str; 10] = [
    "-s",
    "-d",
    "--comment",
    "--dport",
    "--dst",
    "--match-set",
    "--name",
    "--nfacct-name",
    "--probability",
    "--to-destination",
];

/// A rule without what identifies one Service port: its addresses, ports, comments and chains.
fn options_of(rule: &str) -> String {
    let (mut options, mut keep) = (String::new(), true);
    for part in rule.split('"').step_by(2) {
        for word in part.split_whitespace() {
            let is_option = word.starts_with('-') || word == "!";
            if is_option || (keep && !word.starts_with("KUBE-")) {
                options.push_str(word);
                options.push(' ');
            }
            if is_option {
                keep = !OF_ONE_PORT.contains(&word);
            }
        }
    }
    options
}

struct SearchRun<'a, 'b> {
    search: RefusalSearch<'a>,
    tool: &'b mut dyn IptablesTool,
    tests: usize,
    begun: Instant,
}

/// What a test of Service ports showed.
enum TestOutcome<'a> {
    Accepted,
    /// Rules were refused, with the tool's message; those of the named Service ports are among them.
    Refused(String, Group<'a>),
    /// The tool failed, and not because of the rules.
    Failed,
}

impl<'a> SearchRun<'a, '_> {
    /// The refused Service ports; `None` if the tool fails for another reason than the rules.
    fn culprits(&mut self, groups: Vec<Group<'a>>) -> Option<Vec<Culprit>> {
        let mut culprits = Vec::new();
        let mut waiting = VecDeque::from([groups]);
        while let Some(mut groups) = waiting.pop_front() {
            let members: Group<'a> = groups.iter().flatten().copied().collect();
            if self.is_over_budget() {
                let reason = format!("one of {} Service ports is refused, still searching which one", members.len());
                culprits.extend(members.into_iter().map(|name| (name.clone(), reason.clone())));
                continue;
            }
            let (message, named) = match self.test(&members) {
                TestOutcome::Accepted => continue,
                TestOutcome::Refused(message, named) => (message, named),
                TestOutcome::Failed => return None,
            };
            if groups.len() > 1 {
                let rest = groups.split_off(groups.len() / 2);
                waiting.extend([groups, rest]);
                continue;
            }
            match members[..] {
                [alone] if self.is_refused_for_sure(alone)? => culprits.push((alone.clone(), message)),
                [_] => {}
                [first, .., last] if named.len() < 2 && self.are_refused(first, last)? => {
                    let reason = format!("{message}; so are all {} Service ports with these options", members.len());
                    culprits.extend(members.into_iter().map(|name| (name.clone(), reason.clone())));
                }
                _ if !named.is_empty() => {
                    let rest: Group<'a> = members.into_iter().filter(|name| !named.contains(name)).collect();
                    waiting.extend((!rest.is_empty()).then(|| vec![rest]));
                    culprits.extend(named.into_iter().map(|name| (name.clone(), message.clone())));
                }
                _ => {
                    let (a, b) = members.split_at(members.len() / 2);
                    waiting.extend([vec![a.to_vec()], vec![b.to_vec()]]);
                }
            }
        }
        Some(culprits)
    }

    fn is_over_budget(&self) -> bool {
        let time = self.begun.elapsed();
        (self.tests >= MAX_TESTS && time >= MAX_TIME) || time >= TIME_LIMIT
    }

    fn is_accepted(&mut self, ports: &[&'a ServicePortName]) -> Option<bool> {
        match self.test(ports) {
            TestOutcome::Accepted => Some(true),
            TestOutcome::Refused(..) => Some(false),
            TestOutcome::Failed => None,
        }
    }

    fn are_refused(&mut self, first: &'a ServicePortName, last: &'a ServicePortName) -> Option<bool> {
        Some(!self.is_accepted(&[first])? && self.is_refused_for_sure(last)?)
    }

    /// Whether a Service port is refused again, between two transactions without any that are accepted.
    ///
    /// The tool does not always say why it failed; a failure that has passed since must not stop a Service.
    fn is_refused_for_sure(&mut self, name: &'a ServicePortName) -> Option<bool> {
        Some(self.is_accepted(&[])? && !self.is_accepted(&[name])? && self.is_accepted(&[])?)
    }

    /// Writes the Service ports' own chains and puts their other rules into a probe chain.
    ///
    /// Nothing jumps to these chains yet. Of a group larger than a transaction, a sample is tested.
    fn test(&mut self, ports: &[&'a ServicePortName]) -> TestOutcome<'a> {
        self.tests += 1;
        let RefusalSearch { snapshot, settings, .. } = self.search;
        let mut restore = Restore::default();
        for table in PROBED {
            restore.declare(table, PROBE, None);
        }
        let marks = super::base::chains(settings).into_iter().filter(|(_, chain, _)| *chain == MARK_MASQ);
        for (table, chain, rules) in marks {
            restore.chain(table, chain, &rules, None);
        }
        let mut owners: Group<'a> = Vec::new();
        for name in spread(ports) {
            let Some(port) = snapshot.ports.get(name).filter(|_| restore.chains() < self.tool.batch()) else {
                continue;
            };
            let endpoints = snapshot.endpoints.of(name);
            let categorized = CategorizedEndpoints::of(&endpoints, port, snapshot.node);
            let mut port_rules = PortRules::new(name, port, &categorized, settings, false);
            let owner = Owner::try_from(owners.len()).ok();
            owners.push(name);
            for ((table, _), rules) in SHARED.iter().zip(port_rules.shared()) {
                rules.iter().for_each(|rule| restore.append(*table, PROBE, rule, owner));
            }
            port_rules.own(|chain, rules| restore.chain(Table::Nat, chain, &rules, owner));
        }
        match self.tool.restore(&restore) {
            Ok(()) => TestOutcome::Accepted,
            Err(RestoreError { refused: false, .. }) => TestOutcome::Failed,
            Err(RestoreError { lines, message, .. }) => {
                let of_line = |line: &usize| restore.owner(*line).and_then(|owner| owners.get(owner as usize).copied());
                let mut named: Group<'a> = lines.iter().filter_map(of_line).collect();
                named.sort_unstable();
                named.dedup();
                TestOutcome::Refused(message, named)
            }
        }
    }

    /// Nothing jumps there: at worst an unused chain stays.
    fn clean_up(&mut self) {
        let mut remove = Restore::default();
        PROBED.into_iter().for_each(|table| remove.delete(table, PROBE));
        let _ = self.tool.restore(&remove);
    }
}

const PROBED: [Table; 2] = [Table::Filter, Table::Nat];

/// All ports, ordered so that any prefix is a sample of the whole.
fn spread<'p, 'a>(ports: &'p [&'a ServicePortName]) -> impl Iterator<Item = &'a ServicePortName> + use<'p, 'a> {
    const STRIDE: usize = 64;
    (0..STRIDE).flat_map(move |start| ports.iter().skip(start).step_by(STRIDE).copied().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_differ_only_in_addresses_and_names_use_the_same_options() {
        let rule = |address: &str, comment: &str| {
            format!(
                " -d {address}/32 -p tcp -m comment --comment \"{comment}\" -m tcp --dport 80 -j KUBE-SVC-{comment}"
            )
        };
        let options = options_of(&rule("10.0.0.1", "A"));
        assert_eq!(options, "-d -p tcp -m comment --comment -m tcp --dport -j ");
        assert_eq!(
            options_of(" -m recent --name KUBE-SEP-A --rcheck --seconds 5 --reap -j KUBE-SEP-A"),
            "-m recent --name --rcheck --seconds 5 --reap -j "
        );
        assert_eq!(options_of(&rule("10.0.0.2", "B")), options);
        assert_ne!(options_of(&(rule("10.0.0.2", "B") + " -m recent --set")), options);
        assert_eq!(options_of(" -j DROP"), "-j DROP ");
    }
}
