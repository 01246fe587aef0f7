//! Matches on the kernel's sets and `recent` lists.

use super::super::args::RuleParser;
use super::super::clauses::Clause;
use super::super::conditions::{RecentAction, RecentMatch, Test};
use super::super::words::number;

pub(super) fn read(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    if clause.extension.name == "recent" { recent(reading, clause) } else { set(reading, clause) }
}

fn set(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let choice = clause.choices.iter().find(|choice| choice.name == "--match-set");
    let choice = choice.ok_or("match set needs --match-set")?;
    let [name, parts] = &choice.values[..] else { return Err("--match-set takes a set and directions".to_owned()) };
    let of_source = parts.split(',').map(direction).collect::<Result<_, _>>()?;
    if clause.choices.iter().any(|choice| choice.name.contains("packets") || choice.name.contains("bytes")) {
        reading.doubt("set", "what entries of sets counted is not read");
    }
    let return_nomatch = clause.has("--return-nomatch");
    reading.add(choice.negated, Test::Set { name: name.to_string(), of_source, return_nomatch });
    Ok(())
}

fn direction(text: &str) -> Result<bool, String> {
    match text {
        "src" => Ok(true),
        "dst" => Ok(false),
        other => Err(format!("unknown direction {other}")),
    }
}

fn recent(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let actions = [
        ("--set", RecentAction::Set),
        ("--rcheck", RecentAction::Check),
        ("--update", RecentAction::Update),
        ("--remove", RecentAction::Remove),
    ];
    let found = clause.choices.iter().find_map(|choice| {
        let action = actions.iter().find(|(name, _)| choice.name == *name)?;
        Some((action.1, choice.negated))
    });
    let (action, negated) = found.ok_or("match recent needs one of --set, --rcheck, --update and --remove")?;
    let seconds = clause.find("--seconds").map(|text| number("--seconds", text)).transpose()?;
    let hits = clause.find("--hitcount").map_or(Ok(0), |text| number("--hitcount", text))?;
    let whole = match clause.find("--mask") {
        None => true,
        Some(mask) => ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"].contains(&mask),
    };
    let of_sender = whole && !clause.has("--rdest");
    let list = clause.find("--name").unwrap_or("DEFAULT").to_owned();
    reading.add(negated, Test::Recent(RecentMatch { list, action, seconds, hits, of_sender }));
    Ok(())
}
