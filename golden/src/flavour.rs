//! The two kinds of iptables tools a host may have: the nf_tables ones and the legacy ones.
//!
//! In: which one. Out: its tools' names, and their output without what differs between them.
//! It must not know about cases or proxies.

use std::fmt;

/// The chain by which a host says which flavour is in use; it belongs to the lab, not to the proxy.
pub const HINT: &str = "KUBE-IPTABLES-HINT";

/// Which iptables tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`: rules live in `nf_tables`
    Nft,
    /// `iptables-legacy`: rules live in `x_tables`
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Flavour; 2] = [Flavour::Nft, Flavour::Legacy];

    /// The one it is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Flavour::Nft => Flavour::Legacy,
            Flavour::Legacy => Flavour::Nft,
        }
    }

    /// What its save tool printed, as the nf_tables tool would have printed it, without the hint.
    ///
    /// All that differs is the order of the tables: nf_tables has a fixed one, in which the cases are recorded;
    /// legacy has the newest table first. Every recorded file was loaded and saved in both flavours to see that.
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
