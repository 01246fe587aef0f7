//! Parses the output of `nft list ruleset` into chains, sets and elements.

use std::collections::{BTreeMap, BTreeSet};

/// A set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedSet {
    /// `set` or `map`
    pub word: String,
    /// The lines of the definition.
    pub definition: Vec<String>,
    /// The elements: key, quoted comment, and value.
    pub elements: BTreeMap<String, (Option<String>, Option<String>)>,
}

impl ListedSet {
    /// The values by key; empty strings for a set.
    #[must_use]
    pub fn values(&self) -> BTreeMap<String, String> {
        self.elements.iter().map(|(key, (_, value))| (key.clone(), value.clone().unwrap_or_default())).collect()
    }
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedChain {
    /// `type filter hook …` of a base chain, with its priority as a number.
    pub base: Option<String>,
    /// `comment "…"`
    pub comment: Option<String>,
    /// The rules in order.
    pub rules: Vec<String>,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedTable {
    /// `ip` or `ip6`
    pub family: String,
    /// The name.
    pub name: String,
    /// `comment "…"`
    pub comment: Option<String>,
    /// Sets and maps.
    pub sets: BTreeMap<String, ListedSet>,
    /// Chains.
    pub chains: BTreeMap<String, ListedChain>,
}

enum Block {
    Table,
    Set(String),
    Chain(String),
}

impl ListedTable {
    /// The tables of a listing.
    ///
    /// # Panics
    /// If a line is outside of tables.
    #[must_use]
    pub fn all(text: &str) -> Vec<Self> {
        let mut tables: Vec<Self> = Vec::new();
        let mut block = Block::Table;
        // A list of elements has several lines.
        let mut elements: Option<String> = None;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(["table", family, name]) = head(line) {
                tables.push(Self { family: family.to_owned(), name: name.to_owned(), ..Self::default() });
                continue;
            }
            let table = tables.last_mut().unwrap_or_else(|| panic!("outside of a table: {line}"));
            if let Some(start) = line.strip_prefix("elements = { ") {
                elements = Some(start.to_owned());
            } else if let Some(list) = &mut elements {
                list.push_str(line);
            } else {
                table.line(&mut block, line);
            }
            if let (Some(list), Block::Set(name)) = (elements.take_if(|list| list.ends_with('}')), &block) {
                let list = list.trim_end_matches('}').trim();
                table.set(name).elements = split(list).iter().map(|element| of_element(element)).collect();
            }
        }
        tables
    }

    fn set(&mut self, name: &str) -> &mut ListedSet {
        self.sets.entry(name.to_owned()).or_default()
    }

    fn line(&mut self, block: &mut Block, line: &str) {
        match (head(line), &block) {
            (Some([word @ ("set" | "map"), "", name]), _) => {
                word.clone_into(&mut self.set(name).word);
                *block = Block::Set(name.to_owned());
            }
            (Some(["chain", "", name]), _) => {
                self.chains.entry(name.to_owned()).or_default();
                *block = Block::Chain(name.to_owned());
            }
            (None, _) if line == "}" => *block = Block::Table,
            (_, Block::Table) => self.comment = Some(line.to_owned()),
            (_, Block::Set(name)) => {
                let name = name.clone();
                self.set(&name).definition.push(line.to_owned());
            }
            (_, Block::Chain(name)) => {
                let chain = self.chains.entry(name.clone()).or_default();
                if line.starts_with("type ") {
                    chain.base = Some(numbered(line));
                } else if line.starts_with("comment ") {
                    chain.comment = Some(line.to_owned());
                } else {
                    chain.rules.push(line.to_owned());
                }
            }
        }
    }

    /// The part that packets reach: base chains, and what their rules and elements refer to.
    #[must_use]
    pub fn met(&self) -> Self {
        let bases = self.chains.iter().filter(|(_, chain)| chain.base.is_some()).map(|(name, _)| name.clone());
        let mut todo: Vec<String> = bases.collect();
        let (mut chains, mut sets) = (BTreeSet::new(), BTreeSet::new());
        while let Some(name) = todo.pop() {
            let Some(chain) = self.chains.get(&name).filter(|_| chains.insert(name.clone())) else { continue };
            let mut texts: Vec<&str> = chain.rules.iter().map(String::as_str).collect();
            for set in chain.rules.iter().flat_map(|rule| words_after(rule, &["@"])) {
                sets.insert(set.to_owned());
                let elements = self.sets.get(set).into_iter().flat_map(|set| set.elements.values());
                texts.extend(elements.filter_map(|(_, value)| value.as_deref()));
            }
            let targets = texts.into_iter().flat_map(|text| words_after(text, &["goto ", "jump "]));
            todo.extend(targets.map(str::to_owned));
        }
        let mut met = self.clone();
        met.chains.retain(|name, _| chains.contains(name));
        met.sets.retain(|name, _| sets.contains(name));
        met
    }
}

/// The words before the brace of a block: `table ip x {`, or `set x {` with an empty second word.
fn head(line: &str) -> Option<[&str; 3]> {
    match line.strip_suffix(" {")?.split(' ').collect::<Vec<_>>()[..] {
        [word @ "table", family, name] => Some([word, family, name]),
        [word @ ("set" | "map" | "chain"), name] => Some([word, "", name]),
        _ => None,
    }
}

/// A base chain's definition with its priority as a number. nft 1.0.6 prints `priority -110` for the output hook where
/// 1.1.3 prints `priority dstnat - 10`.
pub(super) fn numbered(base: &str) -> String {
    let priorities =
        [("raw", -300), ("mangle", -150), ("dstnat", -100), ("filter", 0), ("security", 50), ("srcnat", 100)];
    let parts = base.split_once(" priority ").and_then(|(head, rest)| Some((head, rest.split_once(';')?)));
    let Some((head, (priority, tail))) = parts else { return base.to_owned() };
    let words: Vec<&str> = priority.split(' ').collect();
    let named = |name: &str| priorities.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = match words[..] {
        [name] => named(name).or_else(|| name.parse::<i32>().ok()),
        [name, sign @ ("+" | "-"), by] => named(name).zip(by.parse::<i32>().ok()).map(|(of, by)| match sign {
            "+" => of + by,
            _ => of - by,
        }),
        _ => None,
    };
    number.map_or_else(|| base.to_owned(), |number| format!("{head} priority {number};{tail}"))
}

/// Splits elements at commas outside of quotes.
fn split(list: &str) -> Vec<String> {
    let mut elements = vec![String::new()];
    let mut quoted = false;
    for character in list.chars() {
        quoted ^= character == '"';
        match (character, elements.last_mut()) {
            (',', _) if !quoted => elements.push(String::new()),
            (_, Some(element)) => element.push(character),
            _ => {}
        }
    }
    elements.into_iter().map(|element| element.trim().to_owned()).filter(|element| !element.is_empty()).collect()
}

fn of_element(text: &str) -> (String, (Option<String>, Option<String>)) {
    let (left, value) = text.split_once(" : ").map_or((text, None), |(left, value)| (left, Some(value.to_owned())));
    let (key, comment) = left.split_once(" comment ").map_or((left, None), |(key, text)| (key, Some(text.to_owned())));
    // Elements added by rules have an expiration.
    let key = key.split(" expires ").next().unwrap_or(key);
    (key.to_owned(), (comment, value))
}

fn words_after<'a>(text: &'a str, marks: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    let after = move |mark: &'a &'a str| text.split(*mark).skip(1);
    marks.iter().flat_map(after).filter_map(|rest| rest.split([' ', ',', '}']).next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_numbers_however_they_are_printed() {
        for (printed, number) in [("dstnat - 10", -110), ("-110", -110), ("srcnat", 100), ("filter + 5", 5), ("0", 0)] {
            let base = format!("type filter hook output priority {printed}; policy accept;");
            assert_eq!(numbered(&base), format!("type filter hook output priority {number}; policy accept;"));
        }
    }
}
