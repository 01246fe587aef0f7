//! What is known of chains that are changed rule by rule.

use std::collections::HashMap;

use super::lines::position;
use crate::SavedChain;
use crate::iptables::{Chain, Table};
use crate::restore::EditedChain;

/// A chain as it was last written: its content, and the handles of its rules in order.
#[derive(Debug)]
struct KnownChain {
    content: SavedChain,
    handles: Vec<u64>,
}

/// The chains that were edited, by table and name. A handle takes eight bytes.
#[derive(Debug, Default)]
pub(super) struct KnownChains(HashMap<(Table, Chain), KnownChain>);

impl KnownChains {
    /// The handles of a chain's rules, if its content is the expected one.
    pub fn take(&mut self, table: Table, edited: &EditedChain) -> Option<Vec<u64>> {
        let known = self.0.remove(&(table, edited.chain))?;
        (known.content == edited.before).then_some(known.handles)
    }

    /// Forgets a chain that is written in another way.
    pub fn forget(&mut self, table: Table, chain: &str) {
        if !self.0.is_empty()
            && let Some(chain) = Chain::parse(chain)
        {
            self.0.remove(&(table, chain));
        }
    }

    /// Records chains that were edited by a batch, with the handles that the kernel gave to its new rules.
    pub fn record(&mut self, table: Table, edits: Vec<PendingEdit>, handles: &HashMap<usize, u64>) {
        for PendingEdit { chain, after, rules } in edits {
            let handle = |slot: &Slot| match slot {
                Slot::Old(handle) => Some(*handle),
                Slot::New(request) => handles.get(request).copied(),
            };
            // Without all handles, the next edit reads the chain.
            if let Some(handles) = rules.iter().map(handle).collect() {
                self.0.insert((table, chain), KnownChain { content: after, handles });
            }
        }
    }
}

/// A rule of a chain that is being edited.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// A rule that stays, by its handle.
    Old(u64),
    /// A new rule, by the request that adds it.
    New(usize),
}

/// A chain as a batch leaves it.
#[derive(Debug)]
pub(super) struct PendingEdit {
    pub chain: Chain,
    pub after: SavedChain,
    pub rules: Vec<Slot>,
}

/// A line that edits a chain: its number, verb and options.
pub(super) type EditLine<'a> = (usize, &'a str, &'a str);

/// The rules of a chain while its lines are applied: handles, or new rules with their lines.
#[derive(Clone, Copy, Debug)]
pub(super) enum Edited<'a> {
    Old(u64),
    New(usize, &'a str),
}

/// The handles of rules that go, each with its line.
type DeletedRules = Vec<(u64, usize)>;

/// A chain's rules after the lines, and the handles that go with the lines that delete them.
///
/// # Errors
/// The first line whose position is beyond the end.
pub(super) fn apply<'a>(handles: &[u64], lines: &[EditLine<'a>]) -> Result<(Vec<Edited<'a>>, DeletedRules), usize> {
    let mut rules: Vec<Edited<'a>> = handles.iter().copied().map(Edited::Old).collect();
    let mut deleted = Vec::new();
    for &(line, verb, options) in lines {
        let (at, options) = position(options).and_then(|(at, rest)| Some((at.checked_sub(1)?, rest))).ok_or(line)?;
        match verb {
            "-D" if at < rules.len() => {
                if let Edited::Old(handle) = rules.remove(at) {
                    deleted.push((handle, line));
                }
            }
            "-I" if at <= rules.len() => rules.insert(at, Edited::New(line, options)),
            _ => return Err(line),
        }
    }
    Ok((rules, deleted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_what_the_lines_before_left() {
        let shown = |handles: &[u64], lines: &[EditLine<'_>]| {
            let (rules, deleted) = apply(handles, lines)?;
            let rules: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
            Ok::<_, usize>((rules.join(" "), deleted))
        };
        let lines = [(7, "-D", " 1"), (8, "-I", " 2 -j DROP"), (9, "-I", " 3 -j ACCEPT"), (10, "-D", " 2")];
        let (rules, deleted) = shown(&[10, 11], &lines).expect("all positions exist");
        assert_eq!((rules.as_str(), deleted), ("Old(11) New(9, \" -j ACCEPT\")", vec![(10, 7)]));
        assert_eq!(shown(&[10], &[(7, "-D", " 2")]), Err(7));
        assert_eq!(shown(&[10], &[(7, "-I", " 3 -j DROP")]), Err(7));
        assert_eq!(shown(&[10], &[(7, "-I", " 0 -j DROP")]), Err(7));
    }
}
