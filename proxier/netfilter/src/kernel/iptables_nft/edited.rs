//! Changes long chains rule by rule, without reading them.

use super::known::{EditLine, Edited, KnownChains, PendingEdit, Slot, apply};
use super::read::ReadRule;
use super::tables::text;
use super::transaction::{RulePosition, Writer};
use crate::SavedChain;
use crate::iptables::Table;
use crate::kernel::nftables::NftError;
use crate::restore::EditedChain;

impl Writer<'_> {
    /// Applies the lines that edit a chain.
    ///
    /// Reads the chain only if its content is not known. Returns the reason if it is not the expected one.
    pub fn edit(
        &mut self,
        (table, edited): (Table, &EditedChain),
        lines: &[EditLine<'_>],
        known: &mut KnownChains,
    ) -> Result<Option<String>, NftError> {
        let chain = edited.chain.as_str();
        let handles = match known.take(table, edited) {
            Some(handles) => handles,
            None => match self.expected(edited)? {
                Some(handles) => handles,
                None => {
                    let why = format!("chain {chain} of table {} was changed by another program", table.name());
                    return Ok(Some(why));
                }
            },
        };
        let (rules, deleted) = match apply(&handles, lines) {
            Ok(applied) => applied,
            Err(line) => {
                self.batch.refused.push((line, format!("chain {chain} has no rule at that position")));
                return Ok(None);
            }
        };
        let mut places = vec![RulePosition::End; rules.len()];
        let mut next = RulePosition::End;
        for (at, rule) in rules.iter().enumerate().rev() {
            if let Edited::Old(handle) = rule {
                next = RulePosition::Before(*handle);
            }
            places[at] = next;
        }
        let mut slots = Vec::with_capacity(rules.len());
        for (rule, place) in rules.iter().zip(places) {
            slots.push(match *rule {
                Edited::Old(handle) => Slot::Old(handle),
                Edited::New(line, options) => {
                    self.add_echoed_rule(chain, options, place, line)?;
                    Slot::New(self.batch.requests.count() - 1)
                }
            });
        }
        for (handle, line) in deleted {
            self.delete_rules(chain, Some(handle), line)?;
        }
        self.batch.edits.push(PendingEdit { chain: edited.chain, after: edited.after, rules: slots });
        Ok(None)
    }

    /// The handles of a chain's rules; `None` if its content is not the expected one.
    fn expected(&mut self, edited: &EditedChain) -> Result<Option<Vec<u64>>, NftError> {
        let rules: Vec<ReadRule> = self.rules.chain(self.name, edited.chain.as_str())?;
        let (mut content, mut buffer) = (SavedChain::default(), String::with_capacity(256));
        for rule in &rules {
            buffer.clear();
            text(&rule.rule, &mut buffer);
            content.add(&buffer);
        }
        Ok((content == edited.before).then(|| rules.iter().map(|rule| rule.handle).collect()))
    }
}
