//! Parses matches with their options into conditions.
//!
//! [`crate::walk`] evaluates the conditions.

mod address;
mod connection;
mod header;
mod memory;

pub(super) use header::class;

use super::args::RuleParser;
use super::clauses::Clause;
use super::conditions::Test;
use super::language::Support;
use super::words::{mark, number};

/// Adds a match's conditions to the rule.
pub(super) fn read(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    match clause.extension.name {
        "comment" => {
            // Tools show the first; others may follow.
            if let Some(text) = clause.find("--comment") {
                reading.meaning.comment.get_or_insert_with(|| text.into());
            }
            Ok(())
        }
        "nfacct" => Ok(()),
        "statistic" => statistic(reading, clause),
        "mark" | "connmark" => marks(reading, clause),
        "addrtype" | "iprange" | "rpfilter" | "devgroup" | "physdev" | "pkttype" => address::read(reading, clause),
        "conntrack" | "state" | "helper" | "ipvs" | "connbytes" | "connlimit" => connection::read(reading, clause),
        "set" | "recent" => memory::read(reading, clause),
        "socket" | "cgroup" => {
            sockets(reading, clause);
            Ok(())
        }
        "limit" | "hashlimit" => {
            limit(reading, clause);
            Ok(())
        }
        "quota" => {
            let quota = clause.choices.iter().find(|choice| choice.name == "--quota");
            let quota = quota.ok_or("match quota needs --quota")?;
            let bytes = number("--quota", quota.value())?;
            reading.add(false, Test::Quota { bytes, after: quota.negated });
            Ok(())
        }
        _ if clause.extension.support == Support::Doubt => Ok(()),
        _ => header::read(reading, clause),
    }
}

fn statistic(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let find = |name: &str| clause.choices.iter().find(|choice| choice.name == name);
    match (clause.find("--mode"), find("--probability"), find("--every")) {
        (Some("random"), Some(probability), None) => {
            let chance: f64 = number("--probability", probability.value())?;
            if !(0.0..=1.0).contains(&chance) {
                return Err(format!("probability {chance}"));
            }
            reading.add(probability.negated, Test::Random(chance));
        }
        // Round robin: over many packets, one in N matches.
        (Some("nth"), None, Some(every)) => {
            let turns: u32 = number("--every", every.value())?;
            reading.add(every.negated, Test::Random(1.0 / f64::from(turns.max(1))));
        }
        _ => return Err("match statistic needs --mode random and --probability, or --mode nth and --every".to_owned()),
    }
    Ok(())
}

fn marks(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    for choice in &clause.choices {
        let (value, mask) = mark(choice.value())?;
        let test = match clause.extension.name {
            "mark" => Test::Mark { value, mask },
            _ => Test::ConnectionMark { value, mask },
        };
        reading.add(choice.negated, test);
    }
    Ok(())
}

/// Forwarded packets have no socket; a new connection has one only if a socket is bound to its destination.
fn sockets(reading: &mut RuleParser, clause: &Clause<'_>) {
    let any_address = clause.choices.iter().any(|choice| choice.name == "--nowildcard");
    reading.add(false, Test::SenderSocket { name: clause.extension.name.to_owned(), any_address });
}

/// Limits are assumed not to be used up: `--hashlimit-upto` and `--limit` hold, `--hashlimit-above` does not.
fn limit(reading: &mut RuleParser, clause: &Clause<'_>) {
    let above = clause.choices.iter().find(|choice| choice.name == "--hashlimit-above");
    let negated = clause.choices.iter().any(|choice| choice.negated && choice.name != "--hashlimit-above");
    let holds = above.map_or(!negated, |above| above.negated);
    reading.add(false, Test::Limited { holds, why: clause.extension.why });
}
