//! The output of `iptables-save`, reduced to what a comparison needs.
//!
//! The output can have hundreds of megabytes. Of each user-defined chain only the number of rules and a fingerprint of
//! their text is kept; rules of built-in chains are kept as text.

use std::collections::HashMap;
use std::hash::Hasher;
use std::io::{self, BufRead};

use super::iptables::{Chain, Rule};

const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The factor of a fingerprint for each rule that follows: any odd number, so that no rule loses its effect.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The content of a chain, or of a part of it: the number of rules and a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SavedChain {
    /// The number of rules.
    pub rules: u32,
    /// A hash of the rules' text, in order.
    pub fingerprint: u64,
}

impl SavedChain {
    /// The content that a chain with these rules has when it is read back.
    #[must_use]
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        let mut chain = Self::default();
        let mut text = String::with_capacity(256);
        for rule in rules {
            text.clear();
            rule.write_to(&mut text);
            chain.add(&text);
        }
        chain
    }

    /// Adds the text of a rule, without its chain.
    ///
    /// Runs of spaces count as one: some versions print two after an option (nfacct in 1.8.9).
    pub(super) fn add(&mut self, rule: &str) {
        let mut hasher = std::hash::DefaultHasher::new();
        let rule = rule.trim_start_matches(' ');
        if rule.as_bytes().windows(2).any(|pair| pair == b"  ") {
            let words: Vec<&str> = rule.split(' ').filter(|word| !word.is_empty()).collect();
            hasher.write(words.join(" ").as_bytes());
        } else {
            hasher.write(rule.as_bytes());
        }
        *self = self.then(Self { rules: 1, fingerprint: hasher.finish() });
    }

    /// The content of a chain with the rules of this one and those of `next` after them.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let shifted = self.fingerprint.wrapping_mul(FACTOR.wrapping_pow(next.rules));
        Self { rules: self.rules + next.rules, fingerprint: shifted.wrapping_add(next.fingerprint) }
    }
}

/// A table as read back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SavedTable {
    /// The user-defined chains.
    pub chains: HashMap<Chain, SavedChain>,
    /// The rules of the built-in chains, as printed: `-A INPUT …`.
    pub builtin: Vec<String>,
}

impl SavedTable {
    /// Reads the output of `iptables-save -t TABLE`, skipping lines that are neither chains nor rules.
    ///
    /// # Errors
    /// The errors of the reader.
    pub fn read(mut input: impl BufRead) -> io::Result<Self> {
        let mut table = Self::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            if input.read_until(b'\n', &mut line)? == 0 {
                return Ok(table);
            }
            table.line(String::from_utf8_lossy(&line).trim_end());
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(declaration) = line.strip_prefix(':') {
            let mut words = declaration.split(' ');
            // A longer name than a chain of this crate can have belongs to another program.
            if let (Some(name), Some("-")) = (words.next(), words.next())
                && let Some(chain) = Chain::parse(name)
            {
                self.chains.insert(chain, SavedChain::default());
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (name, options) = rule.split_once(' ').unwrap_or((rule, ""));
            if BUILTIN.contains(&name) {
                self.builtin.push(line.to_owned());
            } else if let Some(chain) = Chain::parse(name).and_then(|chain| self.chains.get_mut(&chain)) {
                chain.add(options);
            }
        }
    }
}

/// The chain that contains a rule and its target: `-A FROM … -j TO`.
///
/// Targets that are not chains, such as `DNAT`, are returned like chains.
#[must_use]
pub fn reference(line: &str) -> Option<(&str, Chain)> {
    let rule = line.strip_prefix("-A ")?;
    let (from, options) = rule.split_once(' ')?;
    let mut quoted = false;
    let mut words = options.split(' ').filter(move |word| {
        let inside = quoted;
        quoted ^= word.matches('"').count() % 2 == 1;
        !inside && !word.starts_with('"')
    });
    words.find(|word| matches!(*word, "-j" | "-g"))?;
    Some((from, Chain::parse(words.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_of_parts_is_that_of_the_whole_and_depends_on_the_order() {
        let of = |rules: &[&str]| {
            let mut chain = SavedChain::default();
            rules.iter().for_each(|rule| chain.add(rule));
            chain
        };
        let whole = of(&["-j A", "-j B", "-j C"]);
        assert_eq!(of(&["-j A"]).then(of(&["-j B", "-j C"])), whole);
        assert_eq!(of(&["-j A", "-j B"]).then(SavedChain::default()).then(of(&["-j C"])), whole);
        assert_eq!(SavedChain::default().then(whole), whole);
        assert_ne!(of(&["-j B", "-j A", "-j C"]), whole);
        assert_ne!(of(&["-j A", "-j C", "-j B"]), whole);
        assert_ne!(of(&["-j A", "-j A"]), of(&["-j B", "-j B"]));
    }

    #[test]
    fn reference_is_the_target_and_not_a_word_of_the_comment() {
        let to = |line| reference(line).map(|(from, to)| (from.to_owned(), to.as_str().to_owned()));
        let pair = |from: &str, to: &str| Some((from.to_owned(), to.to_owned()));
        assert_eq!(to("-A MINE -d 10.0.0.1/32 -p tcp -j KUBE-SVC-A"), pair("MINE", "KUBE-SVC-A"));
        assert_eq!(to("-A MINE -m comment --comment \"see -j OTHER now\" -g KUBE-A"), pair("MINE", "KUBE-A"));
        assert_eq!(to("-A MINE -m comment --comment \"one\" -j DNAT --to-destination 1.2.3.4"), pair("MINE", "DNAT"));
        assert_eq!(to("-A MINE -m comment --comment \"-j KUBE-A\""), None);
        assert_eq!(to(":MINE - [0:0]"), None);
    }

    #[test]
    fn saved_table_has_counts_and_fingerprints() {
        let text = b"# Generated\n*nat\n:INPUT ACCEPT [0:0]\n:KUBE-A - [1:2]\n:KUBE-B - [0:0]\n:no\n\xff\xfe\n\
            -A INPUT -j KUBE-A\n-A KUBE-A -m nfacct --nfacct-name  x -j DROP\n-A KUBE-B\n-A KUBE-GONE -j DROP\nCOMMIT\n";
        let table = SavedTable::read(&text[..]).expect("readable");
        let [a, b] = ["KUBE-A", "KUBE-B"].map(Chain::new);
        assert_eq!(table.builtin, ["-A INPUT -j KUBE-A"]);
        assert_eq!((table.chains.len(), table.chains[&a].rules, table.chains[&b].rules), (2, 1, 1));

        let mut one_blank = SavedChain::default();
        one_blank.add("-m nfacct --nfacct-name x -j DROP");
        assert_eq!(table.chains[&a], one_blank, "blanks do not count");
        let mut other = SavedChain::default();
        other.add("-m nfacct --nfacct-name y -j DROP");
        assert_ne!(table.chains[&a], other);
    }
}
