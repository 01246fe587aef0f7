//! The iptables flavours: program names, and saved rules in one format.

use std::fmt;

use netfilter::IpFamily;
use netfilter::kernel::{self, RuleReader};
use proxier_inspect::rules::Ruleset;

use crate::netns::Netns;

/// The chain by which a host announces its flavour. It belongs to the lab and not to the proxy.
pub const HINT: &str = "KUBE-IPTABLES-HINT";

/// An iptables flavour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`: rules in nf_tables
    Nft,
    /// `iptables-legacy`: rules in x_tables
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Flavour; 2] = [Flavour::Nft, Flavour::Legacy];

    /// The other flavour.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Flavour::Nft => Flavour::Legacy,
            Flavour::Legacy => Flavour::Nft,
        }
    }

    /// All rules of a node in this flavour, read as `trace` reads them.
    ///
    /// # Panics
    /// If they cannot be read or parsed.
    #[must_use]
    pub fn ruleset(self, node: &Netns, family: IpFamily) -> Ruleset {
        let flavour = match self {
            Flavour::Nft => kernel::Flavour::Nft,
            Flavour::Legacy => kernel::Flavour::Legacy,
        };
        node.enter(|| {
            let mut ruleset = Ruleset::new(family);
            let mut reader = ruleset.reader();
            let rules = RuleReader::find(family, flavour).expect("a program that reads rules");
            rules.save(None, &mut |line| reader.line(line)).expect("the rules");
            assert_eq!(reader.finish(), []);
            ruleset
        })
    }

    /// The output of its save program in the format of the nf_tables flavour, without the hint.
    ///
    /// Only the order of tables differs: fixed in nf_tables, newest first in legacy. This was checked by loading and
    /// saving every recorded file in both flavours.
    #[must_use]
    pub fn normalise(self, saved: &str) -> String {
        let lines = saved.lines().filter(|line| line.split([':', ' ']).nth(1) != Some(HINT));
        let mut tables: Vec<Vec<&str>> = Vec::new();
        for line in lines.filter(|line| !line.starts_with('#')) {
            if line.starts_with('*') || tables.is_empty() {
                tables.push(Vec::new());
            }
            if let Some(table) = tables.last_mut() {
                table.push(line);
            }
        }
        if self == Flavour::Legacy {
            tables.sort_by_key(|table| rank(table[0]));
        }
        tables.concat().iter().flat_map(|line| [line, "\n"]).collect()
    }
}

fn rank(table: &str) -> usize {
    ["*mangle", "*filter", "*nat"].iter().position(|known| *known == table).unwrap_or(usize::MAX)
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Nft => "nft",
            Flavour::Legacy => "legacy",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str =
        "*nat\n:KUBE-A - [0:0]\nCOMMIT\n# x\n*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-B - [0:0]\nCOMMIT\n";

    #[test]
    fn the_hint_goes_and_legacy_tables_are_put_in_order() {
        let (nat, mangle) = ("*nat\n:KUBE-A - [0:0]\nCOMMIT\n", "*mangle\n:KUBE-B - [0:0]\nCOMMIT\n");
        assert_eq!(Flavour::Nft.normalise(SAVED), format!("{nat}{mangle}"));
        assert_eq!(Flavour::Legacy.normalise(SAVED), format!("{mangle}{nat}"));
        assert_eq!(Flavour::Legacy.normalise(""), "");
    }
}
