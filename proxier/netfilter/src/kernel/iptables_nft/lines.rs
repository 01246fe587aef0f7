//! The lines of a [`Restore`](crate::Restore) that are about one table.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::iptables::Table;
use crate::restore::EditedChain;

/// The most chains of a transaction whose rules are compared with the kernel's one by one. Of larger transactions,
/// such as that of a start, only long chains are compared.
const COMPARED_MAX: usize = 64;
/// The number of rules of a chain that is always compared.
const LONG: usize = 256;

/// The lines about one table, with the number of the first.
pub(super) struct Lines<'a> {
    pub table: Table,
    pub texts: [&'a str; 3],
    pub first: usize,
    /// The chains that are changed rule by rule.
    pub edited: &'a [EditedChain],
}

/// The rules of chains that are to be compared, each with its line. The first of a chain is its declaration.
pub(super) type Chains<'a> = BTreeMap<&'a str, Vec<(usize, &'a str)>>;

impl<'a> Lines<'a> {
    /// The number of lines, head and COMMIT included.
    pub fn count(&self) -> usize {
        2 + self.texts.iter().map(|text| text.lines().count()).sum::<usize>()
    }

    /// Whether a batch for these lines depends on what the table contains.
    pub fn depend(&self) -> bool {
        let deletes =
            || self.texts[1].lines().filter_map(command).any(|(verb, chain, _)| verb == "-D" && !self.edits(chain));
        !self.compared().is_empty() || deletes()
    }

    /// Whether a chain is changed rule by rule.
    pub fn edits(&self, chain: &str) -> bool {
        self.edited.iter().any(|edited| edited.chain.as_str() == chain)
    }

    pub fn numbered(&self, part: usize) -> impl Iterator<Item = (usize, &'a str)> {
        let before: usize = self.texts[..part].iter().map(|text| text.lines().count()).sum();
        (self.first + 1 + before..).zip(self.texts[part].lines())
    }

    pub fn deleted(&self) -> HashSet<&'a str> {
        self.texts[2].lines().filter_map(|line| line.strip_prefix("-X ")).collect()
    }

    /// The chains that are written and stay.
    pub fn written(&self) -> BTreeSet<&'a str> {
        let deleted = self.deleted();
        self.texts[0].lines().filter_map(declared).filter(|chain| !deleted.contains(chain)).collect()
    }

    /// The chains whose rules are compared one by one.
    pub fn compared(&self) -> BTreeSet<&'a str> {
        let written = self.written();
        if written.len() <= COMPARED_MAX {
            return written;
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (verb, chain, _) in self.texts[1].lines().filter_map(command) {
            *counts.entry(chain).or_default() += usize::from(verb == "-A");
        }
        let long = counts.into_iter().filter(|(chain, count)| *count >= LONG && written.contains(chain));
        long.map(|(chain, _)| chain).collect()
    }
}

/// The chain of `:CHAIN - [0:0]`.
pub(super) fn declared(line: &str) -> Option<&str> {
    line.strip_prefix(':')?.split(' ').next()
}

/// The verb, the chain and the options of a rule's line.
pub(super) fn command(line: &str) -> Option<(&str, &str, &str)> {
    let (verb, rest) = line.split_once(' ')?;
    let end = rest.find(' ').unwrap_or(rest.len());
    Some((verb, &rest[..end], &rest[end..]))
}

/// The position at the beginning of the options of a line that edits a chain, and the rest.
pub(super) fn position(options: &str) -> Option<(usize, &str)> {
    let options = options.trim_start();
    let end = options.find(' ').unwrap_or(options.len());
    Some((options[..end].parse().ok()?, &options[end..]))
}

/// The chains, each after the chains that its rules jump to.
pub(super) fn leaves_first<'a>(chains: &Chains<'a>) -> Vec<&'a str> {
    let (mut order, mut seen) = (Vec::with_capacity(chains.len()), HashSet::new());
    for root in chains.keys() {
        let mut stack = vec![(*root, false)];
        while let Some((chain, is_left)) = stack.pop() {
            if is_left {
                order.push(chain);
            } else if seen.insert(chain) {
                stack.push((chain, true));
                let targets = chains[chain].iter().filter_map(|(_, rule)| target(rule));
                stack.extend(
                    targets.filter_map(|target| chains.get_key_value(target)).map(|(known, _)| (*known, false)),
                );
            }
        }
    }
    order
}

/// The target of a rule, which is its last match or target option's argument.
fn target(rule: &str) -> Option<&str> {
    rule.rsplit_once(" -j ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_come_after_those_that_they_jump_to() {
        let rules = |rules: &[&'static str]| rules.iter().map(|rule| (0, *rule)).collect::<Vec<_>>();
        let chains = Chains::from([
            ("A", rules(&["", " -d 10.0.0.1/32 -j C", " -j OTHER"])),
            ("B", rules(&["", " -m comment --comment \"to -j A\" -j D"])),
            ("C", rules(&["", " -j D"])),
            ("D", rules(&["", " -j DNAT --to-destination 10.0.0.1:80", " -j RETURN"])),
        ]);
        assert_eq!(leaves_first(&chains), ["D", "C", "A", "B"]);
        // The kernel refuses a loop; here it must only end.
        assert_eq!(leaves_first(&Chains::from([("A", rules(&[" -j B"])), ("B", rules(&[" -j A"]))])), ["B", "A"]);
    }
}
