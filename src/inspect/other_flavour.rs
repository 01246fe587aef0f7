//! Rules of the flavour of iptables that is not in use. Packets meet the rules of both flavours.

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, NftReader, has_legacy_tables};
use proxier_inspect::rules::{Policy, Ruleset};

use super::report::Unread;
use super::rule_text::RuleText;
use super::rules::FamilyRules;

impl FamilyRules {
    /// Reads the rules of the flavour that is not in use. Tables without rules whose policies accept decide nothing.
    pub(super) fn read_other_flavour(&mut self, flavour: Flavour, unread: &mut Vec<Unread>) {
        let mut note =
            |why: String| unread.push(Unread::new(&format!("rules of {} in flavour {flavour}", self.family), why));
        match has_tables(self.family, flavour, &mut self.tables) {
            Ok(true) => {}
            Ok(false) => return,
            Err(why) => return note(why),
        }
        let mut ruleset = Ruleset::new(self.family);
        let mut reader = ruleset.reader();
        let read = RuleText::open(self.family, flavour).and_then(|text| text.all(&mut |line| reader.line(line)));
        let problems = reader.finish();
        problems.into_iter().map(|problem| problem.to_string()).chain(read.err()).for_each(note);
        let decides = ruleset.tables().any(|table| {
            let mut chains = ruleset.chains(table);
            chains.any(|(_, chain)| {
                chain.policy == Some(Policy::Drop) || (chain.policy.is_some() && !chain.rules.is_empty())
            })
        });
        self.other = decides.then_some((flavour, ruleset));
    }

    /// What the flavour that is not in use has: its tables, how many rules they have, and which policies drop.
    #[must_use]
    pub fn other_in_words(&self) -> Option<String> {
        let (flavour, ruleset) = self.other.as_ref()?;
        let of_table = |table: &str| {
            let rules: usize = ruleset.chains(table).map(|(_, chain)| chain.rules.len()).sum();
            let drops = ruleset.chains(table).filter(|(_, chain)| chain.policy == Some(Policy::Drop));
            let drops: String = drops.map(|(name, _)| format!(", policy of {name}: DROP")).collect();
            (rules > 0 || !drops.is_empty()).then(|| format!("{table} ({rules} rules{drops})"))
        };
        let tables: Vec<String> = ruleset.tables().filter_map(of_table).collect();
        Some(format!(
            "{}: packets meet rules of the other flavour of iptables ({flavour}) too: {}",
            self.family,
            tables.join(", ")
        ))
    }
}

/// Whether the kernel has tables of iptables in that flavour.
fn has_tables(family: IpFamily, flavour: Flavour, tables: &mut NftReader) -> Result<bool, String> {
    match flavour {
        Flavour::Legacy => {
            has_legacy_tables(family).map_err(|error| format!("{}: {error}", family.legacy_table_names()))
        }
        Flavour::Nft => {
            let outline = tables.read_outline().map_err(|error| error.to_string())?;
            Ok(outline.tables.iter().any(|(id, table)| table.is_iptables(id)))
        }
    }
}
