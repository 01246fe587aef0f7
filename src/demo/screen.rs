//! Prints the demo: headings, text, bars, and claims that hold or not.

use super::traffic::Tally;
pub use crate::terminal::Style;
use crate::terminal::{self, Terminal};

const WIDTH: usize = 40;

/// Standard output, and the claims that did not hold.
#[derive(Debug)]
pub struct Screen {
    terminal: Terminal,
    block: char,
    problems: Vec<String>,
}

impl Screen {
    /// Detects the capabilities of the terminal from the environment.
    pub fn new() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
        let utf8 = ["UTF-8", "utf8", "utf-8", "UTF8"].iter().any(|name| locale.ends_with(name));
        Self { terminal: Terminal::of_stdout(), block: if utf8 { '█' } else { '#' }, problems: Vec::new() }
    }

    /// Applies a style, if the terminal has colours.
    pub fn styled(&self, style: Style, text: &str) -> String {
        self.terminal.styled(style, text)
    }

    /// Prints a line.
    pub fn line(&self, text: &str) {
        terminal::print(&format!("{}\n", text.trim_end()));
    }

    /// Prints an indented line.
    pub fn text(&self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// Begins a section.
    pub fn heading(&self, text: &str) {
        self.line("");
        self.line(&self.styled(Style::Bold, text));
    }

    /// A bar proportional to `part` of `whole`.
    pub fn bar(&self, part: usize, whole: usize, width: usize) -> String {
        let length = (part * width + whole / 2) / whole.max(1);
        let bar: String = std::iter::repeat_n(self.block, length).collect();
        // Padded first: colours have no width.
        self.styled(Style::Blue, &format!("{bar:width$}"))
    }

    /// Prints the connections of each pod.
    pub fn bars(&self, tally: &Tally) {
        let (most, all) = (tally.pods.values().max().copied().unwrap_or(0), tally.answered());
        for (pod, count) in &tally.pods {
            let tenths = (count * 1000 + all / 2) / all.max(1);
            let bar = self.bar(*count, most, WIDTH);
            self.text(&format!("{pod:8} {bar} {count:4} {:5}.{} %", tenths / 10, tenths % 10));
        }
        for (error, count) in &tally.failures {
            self.text(&self.styled(Style::Red, &format!("{count} failed: {error}")));
        }
    }

    /// Prints a claim and whether it holds.
    pub fn check(&mut self, holds: bool, claim: &str) {
        if holds {
            self.text(&format!("{} {claim}", self.styled(Style::Green, "ok")));
        } else {
            self.text(&format!("{} {claim}", self.styled(Style::Red, "NOT SO:")));
            self.problems.push(claim.to_owned());
        }
    }

    /// Prints the summary. Returns whether every claim held.
    pub fn end(&self) -> bool {
        self.line("");
        if self.problems.is_empty() {
            self.line(&self.styled(Style::Green, "All as it should be."));
        } else {
            self.line(&self.styled(Style::Red, "Not as it should be. These do not hold:"));
            self.problems.iter().for_each(|problem| self.text(problem));
        }
        self.problems.is_empty()
    }
}
