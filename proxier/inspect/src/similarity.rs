//! Matches the lines of two rule lists by similarity.
//!
//! The lists are expected and found rules of iptables or nf_tables. The results are the lines that only one list has, and
//! pairs of lines that are similar enough for one to be an edit of the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::rules::Rule;

/// Limit of line pairs for an exact alignment.
const MOST_PAIRS: usize = 4_000_000;

/// A line of text that can be compared word by word.
pub trait RuleText {
    /// The whole text.
    fn text(&self) -> &str;

    /// The words that identify the line.
    fn essence(&self) -> Vec<&str> {
        words(self.text())
    }

    /// Whether two lines are equal; equal lines have the same essence.
    fn same(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

/// The words of a line.
pub fn words(text: &str) -> Vec<&str> {
    text.split(' ').filter(|word| !word.is_empty()).collect()
}

/// Rules are compared without comments: large clusters omit comments, and chains that did not change since the cluster
/// grew or shrank keep theirs.
impl RuleText for Rule {
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

/// A rule's words without its comment, which may be several in quotes.
fn without_comment(mut words: Vec<&str>) -> Vec<&str> {
    let Some(start) = words.iter().position(|word| *word == "--comment").filter(|at| *at > 1) else { return words };
    let quoted = words.get(start + 1).is_some_and(|word| word.starts_with('"'));
    let ends = |word: &&str| !quoted || (word.ends_with('"') && word.len() > 1);
    let end = words[start + 1..].iter().position(ends).map_or(words.len(), |at| start + 2 + at);
    words.drain(start - 2..end);
    words
}

/// The words that two rules share, in thousandths of the longer rule's words.
fn likeness(a: &[&str], b: &[&str]) -> usize {
    let mut left = b.to_vec();
    let common =
        a.iter().filter(|word| left.iter().position(|other| other == *word).map(|at| left.remove(at)).is_some());
    common.count() * 1000 / a.len().max(b.len()).max(1)
}

/// Removes pairs of similar lines from both lists, the most similar first. Similar lines share most of their words.
pub fn best_pairs<'a, L: RuleText>(missing: &mut Vec<&'a L>, extra: &mut Vec<&'a L>) -> Vec<(&'a L, &'a L)> {
    let words_of = |lines: &[&'a L]| lines.iter().map(|line| words(line.text())).collect::<Vec<_>>();
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
    let keep = |lines: &mut Vec<&'a L>, used: &BTreeSet<usize>| {
        let mut at = 0;
        lines.retain(|_| {
            at += 1;
            !used.contains(&(at - 1))
        });
    };
    keep(missing, &used_missing);
    keep(extra, &used_extra);
    pairs
}

/// The missing and the extra lines.
type MissingAndExtra<'a, L> = (Vec<&'a L>, Vec<&'a L>);

/// Lines that only one list has, ignoring the order.
pub fn as_sets<'a, L: RuleText>(expected: &[&'a L], found: &[&'a L]) -> MissingAndExtra<'a, L> {
    let mut held: BTreeMap<Vec<&str>, Vec<&'a L>> = BTreeMap::new();
    for line in found.iter().rev() {
        held.entry(words(line.text())).or_default().push(line);
    }
    let missing = expected.iter().filter(|line| held.get_mut(&words(line.text())).and_then(Vec::pop).is_none());
    let missing = missing.copied().collect();
    (missing, held.into_values().flatten().collect())
}

/// Lines that only one list has, outside the longest common subsequence.
pub fn aligned<'a, L: RuleText>(expected: &[&'a L], found: &[&'a L]) -> MissingAndExtra<'a, L> {
    let start = expected.iter().zip(found).take_while(|(a, b)| a.same(b)).count();
    let (a, b) = (&expected[start..], &found[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a.same(b)).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    if a.len() * b.len() > MOST_PAIRS {
        return as_sets(a, b);
    }
    // Numbers compare faster than word lists.
    let mut numbers: HashMap<Vec<&str>, usize> = HashMap::new();
    let mut number = |line: &&'a L| {
        let next = numbers.len();
        *numbers.entry(line.essence()).or_insert(next)
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
            if !a[i].same(b[j]) {
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
