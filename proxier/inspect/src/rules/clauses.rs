//! Groups a rule's words by the match or target that they belong to.
//!
//! iptables gives an option to the last preceding match that has such an option; a second `-m` of the same
//! name begins a second match. Words after `-j` belong to the target, unless only a match has the option.

use std::borrow::Cow;

use super::language::{self, Extension, Support};
use super::words::Word;

/// An option with its values.
#[derive(Debug)]
pub(super) struct OptionValues<'a> {
    pub(super) negated: bool,
    pub(super) name: Cow<'a, str>,
    pub(super) values: Vec<Cow<'a, str>>,
}

impl OptionValues<'_> {
    /// The first value; empty if there is none.
    pub(super) fn value(&self) -> &str {
        self.values.first().map(AsRef::as_ref).unwrap_or_default()
    }
}

/// A match or a target with its options.
#[derive(Debug)]
pub(super) struct Clause<'a> {
    pub(super) extension: &'static Extension,
    pub(super) choices: Vec<OptionValues<'a>>,
}

impl Clause<'_> {
    /// Whether the option is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The option's value.
    pub(super) fn find(&self, name: &str) -> Option<&str> {
        self.choices.iter().find(|choice| choice.name == name).map(OptionValues::value)
    }
}

/// What happens to packets that match.
#[derive(Debug)]
pub(super) enum Action<'a> {
    Target(Clause<'a>),
    Jump(String),
    Goto(String),
}

/// A rule's words, sorted.
#[derive(Debug, Default)]
pub(super) struct Clauses<'a> {
    /// `-s`, `-d`, `-i`, `-o`, `-p`, `-f`.
    pub(super) plain: Vec<OptionValues<'a>>,
    pub(super) matches: Vec<Clause<'a>>,
    pub(super) action: Option<Action<'a>>,
    /// The first syntax error.
    pub(super) problem: Option<String>,
}

/// Sorts a rule's words.
pub(super) fn sort(words: Vec<Word<'_>>) -> Clauses<'_> {
    let mut sorter = Sorter { words: words.into_iter().peekable(), negate: false, clauses: Clauses::default() };
    while let Some(word) = sorter.words.next() {
        if let Err(problem) = sorter.take(word.text) {
            sorter.clauses.problem.get_or_insert(problem);
            sorter.skip();
        }
    }
    if sorter.negate {
        sorter.clauses.problem.get_or_insert_with(|| "nothing after !".to_owned());
    }
    sorter.clauses
}

struct Sorter<'a> {
    words: std::iter::Peekable<std::vec::IntoIter<Word<'a>>>,
    negate: bool,
    clauses: Clauses<'a>,
}

impl<'a> Sorter<'a> {
    fn skip(&mut self) {
        self.negate = false;
        while self.words.next_if(|word| !word.is_option() && !word.is_not()).is_some() {}
    }

    fn take(&mut self, word: Cow<'a, str>) -> Result<(), String> {
        match &*word {
            "!" if !self.negate => {
                self.negate = true;
                return Ok(());
            }
            "-s" | "-d" | "-i" | "-o" | "-p" => {
                let choice = self.choice(word, 1)?;
                self.clauses.plain.push(choice);
                return Ok(());
            }
            "-f" => {
                let choice = self.choice(word, 0)?;
                self.clauses.plain.push(choice);
                return Ok(());
            }
            "-m" => self.matched()?,
            "-j" | "-g" => self.target(word == "-g")?,
            _ => return self.option(word),
        }
        if self.negate {
            return Err(format!("{word} cannot be negated"));
        }
        Ok(())
    }

    fn value(&mut self, option: &str) -> Result<Cow<'a, str>, String> {
        self.words.next().map(|word| word.text).ok_or_else(|| format!("{option} needs a value"))
    }

    fn choice(&mut self, name: Cow<'a, str>, count: u8) -> Result<OptionValues<'a>, String> {
        // Old versions print the negation behind the option.
        if count > 0 && self.words.next_if(Word::is_not).is_some() {
            self.negate = !self.negate;
        }
        let values = (0..count).map(|_| self.value(&name)).collect::<Result<_, _>>()?;
        Ok(OptionValues { negated: std::mem::take(&mut self.negate), name, values })
    }

    fn matched(&mut self) -> Result<(), String> {
        let name = self.value("-m")?;
        let extension = language::match_of(&name).ok_or_else(|| format!("unknown match {name}"))?;
        self.clauses.matches.push(Clause { extension, choices: Vec::new() });
        Ok(())
    }

    fn target(&mut self, goto: bool) -> Result<(), String> {
        if self.clauses.action.is_some() {
            return Err("a second target".to_owned());
        }
        let name = self.value(if goto { "-g" } else { "-j" })?;
        self.clauses.action = Some(match language::target_of(&name).filter(|_| !goto) {
            Some(extension) => Action::Target(Clause { extension, choices: Vec::new() }),
            None if goto => Action::Goto(name.into_owned()),
            None => Action::Jump(name.into_owned()),
        });
        Ok(())
    }

    /// Assigns an option to the target or match that has it.
    fn option(&mut self, name: Cow<'a, str>) -> Result<(), String> {
        if let Some(Action::Target(target)) = &self.clauses.action
            && let Some(count) = target.extension.values(&name)
        {
            let choice = self.choice(name, count)?;
            if let Some(Action::Target(target)) = &mut self.clauses.action {
                target.choices.push(choice);
            }
            return Ok(());
        }
        let holder = self.clauses.matches.iter().rposition(|clause| clause.extension.values(&name).is_some());
        if let Some(at) = holder {
            let count = self.clauses.matches[at].extension.values(&name).unwrap_or_default();
            let choice = self.choice(name, count)?;
            self.clauses.matches[at].choices.push(choice);
            return Ok(());
        }
        // Without -m, the protocol's own match is implied.
        if let Some(extension) = self.of_protocol().filter(|extension| extension.values(&name).is_some()) {
            self.clauses.matches.push(Clause { extension, choices: Vec::new() });
            return self.option(name);
        }
        // A match that is not decided anyway may have unknown options.
        let last = self.clauses.matches.last();
        if last.is_some_and(|clause| clause.extension.support == Support::Doubt) && name.starts_with("--") {
            self.skip();
            return Ok(());
        }
        if !name.starts_with('-') {
            return Err(format!("unknown word {name}"));
        }
        let of_target = match &self.clauses.action {
            Some(Action::Target(target)) => format!(" of target {}", target.extension.name),
            _ => String::new(),
        };
        Err(format!("unknown option {name}{of_target}"))
    }

    fn of_protocol(&self) -> Option<&'static Extension> {
        let protocol = self.clauses.plain.iter().find(|choice| choice.name == "-p" && !choice.negated)?;
        let name = match protocol.value() {
            "6" => "tcp",
            "17" => "udp",
            "132" => "sctp",
            "ipv6-icmp" | "icmpv6" | "58" => "icmp6",
            "1" => "icmp",
            name => name,
        };
        language::match_of(name).filter(|extension| {
            ["tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "ah", "esp", "ipcomp", "mh"]
                .contains(&extension.name)
        })
    }
}
