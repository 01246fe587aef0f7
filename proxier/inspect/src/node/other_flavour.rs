//! Rules of the flavour of iptables that is not in use. Packets meet the rules of both flavours.

use netfilter::kernel::{Flavour, has_legacy_tables};

use super::flavours::of_flavour;
use super::rule_source::RuleSource;
use super::{FamilyRules, Unread};
use crate::rules::Policy;

impl FamilyRules {
    /// Reads the rules of the flavour that is not in use. Tables without rules whose policies accept decide nothing.
    pub(super) fn read_other_flavour(&mut self, flavour: Flavour, unread: &mut Vec<Unread>) {
        let what = format!("rules of {} in flavour {flavour}", self.family);
        let mut note = |why: String| unread.push(Unread::new(&what, why));
        let mut source = match self.tables_of(flavour) {
            Ok(Some(source)) => source,
            Ok(None) => return,
            Err(why) => return note(why),
        };
        let mut ruleset = of_flavour(self.family, flavour);
        match source.read_all(&mut ruleset) {
            Ok(problems) => problems.into_iter().for_each(note),
            Err(why) => note(why),
        }
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

    /// The rules of iptables in that flavour, if the kernel has tables of it.
    fn tables_of(&mut self, flavour: Flavour) -> Result<Option<RuleSource>, String> {
        let family = self.family;
        match flavour {
            Flavour::Legacy => {
                let is_there = has_legacy_tables(family);
                match is_there.map_err(|error| format!("{}: {error}", family.legacy_table_names()))? {
                    true => RuleSource::legacy(family).map(Some),
                    false => Ok(None),
                }
            }
            Flavour::Nft => {
                let outline = self.tables.read_outline().map_err(|error| error.to_string())?;
                let is_there = outline.tables.iter().any(|(id, table)| table.is_iptables(id));
                Ok(is_there.then(|| RuleSource::native(&outline, true)))
            }
        }
    }
}
