//! The flavour of a host without iptables programs, as the kernel's rules tell it.

use super::flavour::Flavour;
use super::iptables::{legacy_tables, named};
use super::iptables_nft::NftRules;
use super::legacy::table_size;
use crate::IpFamily;
use crate::iptables::Table;

/// The numbers of rules of both flavours, in both families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RuleCounts {
    /// Entries of legacy tables beyond those of an empty table: a rule is one, a chain two.
    pub legacy: u64,
    /// Rules in nf_tables tables of the names of iptables's; not counted if there is no legacy one.
    pub nft: u64,
}

impl RuleCounts {
    /// Counts the rules.
    ///
    /// # Errors
    /// The tables that cannot be read.
    pub fn read() -> Result<Self, Vec<String>> {
        Self::read_by(&legacy_entries, &nft_rules)
    }

    fn read_by(
        legacy: &dyn Fn(IpFamily) -> Result<u64, String>,
        nft: &dyn Fn(IpFamily) -> Result<u64, String>,
    ) -> Result<Self, Vec<String>> {
        let legacy = sum(legacy)?;
        // Most hosts have no legacy rule, and many of the other flavour.
        let nft = if legacy == 0 { 0 } else { sum(nft)? };
        Ok(Self { legacy, nft })
    }

    /// The flavour with more rules; nf_tables if there are as many, as upstream's iptables-wrapper decides.
    pub fn flavour(self) -> Flavour {
        if self.legacy > self.nft { Flavour::Legacy } else { Flavour::Nft }
    }

    /// The reason for the choice.
    pub fn reason(self) -> String {
        match self {
            Self { legacy: 0, .. } => "the kernel has no legacy iptables rule".to_owned(),
            Self { legacy, nft } => {
                format!("legacy iptables tables have {legacy} entries, and those of nf_tables {nft} rules")
            }
        }
    }
}

fn sum(count: &dyn Fn(IpFamily) -> Result<u64, String>) -> Result<u64, Vec<String>> {
    let (mut total, mut unread) = (0, Vec::new());
    for family in IpFamily::ALL {
        match count(family) {
            Ok(count) => total += count,
            Err(cause) => unread.push(cause),
        }
    }
    if unread.is_empty() { Ok(total) } else { Err(unread) }
}

/// The entries of an empty legacy table: the policy of each hook, and the end.
fn empty_size(table: Table) -> u32 {
    match table {
        Table::Filter => 4,
        Table::Nat => 5,
        Table::Mangle => 6,
    }
}

fn legacy_entries(family: IpFamily) -> Result<u64, String> {
    let failed = |error: std::io::Error| format!("legacy tables of {}: {error}", family.iptables());
    let (names, mut entries) = (legacy_tables(family).map_err(failed)?, 0);
    for table in named(&names) {
        let size = table_size(family, table).map_err(failed)?;
        entries += u64::from(size.entries.saturating_sub(empty_size(table)));
    }
    Ok(entries)
}

fn nft_rules(family: IpFamily) -> Result<u64, String> {
    let (mut reader, mut rules) = (NftRules::new(family), 0);
    for table in Table::ALL {
        let count = reader.table(table.name(), |count: &mut u64, _, _| *count += 1);
        rules += count.map_err(|error| format!("nf_tables tables of {}: {error}", family.iptables()))?;
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavour_with_more_rules_is_chosen_and_nf_tables_if_there_are_as_many() {
        let counts = |legacy, nft| RuleCounts::read_by(&move |_| Ok(legacy), &move |_| Ok(nft)).expect("all is read");
        for ((legacy, nft), flavour) in
            [((0, 0), Flavour::Nft), ((3, 3), Flavour::Nft), ((4, 3), Flavour::Legacy), ((0, 9), Flavour::Nft)]
        {
            assert_eq!(counts(legacy, nft).flavour(), flavour, "{legacy} {nft}");
        }
        assert_eq!(counts(4, 3).reason(), "legacy iptables tables have 8 entries, and those of nf_tables 6 rules");
    }

    #[test]
    fn unreadable_tables_are_not_taken_for_empty_ones() {
        let unreadable = |family: IpFamily| Err(format!("legacy tables of {}: Permission denied", family.iptables()));
        let unread = RuleCounts::read_by(&unreadable, &|_| Ok(1)).expect_err("not read");
        assert_eq!(unread[1], "legacy tables of ip6tables: Permission denied");
        assert!(RuleCounts::read_by(&|_| Ok(1), &unreadable).is_err());
        // The other flavour does not matter without a legacy rule.
        assert_eq!(RuleCounts::read_by(&|_| Ok(0), &unreadable), Ok(RuleCounts::default()));
    }
}
