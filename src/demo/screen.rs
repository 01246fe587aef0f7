//! What a person sees.
//!
//! In: headings, texts, counts, claims and whether they hold. Out: lines on standard output, and what did not hold.
//! Must not know: what it is about. Colours only on a terminal, and never with `NO_COLOR`.

use super::traffic::Tally;
pub use crate::terminal::Style;
use crate::terminal::{self, Look};

const WIDTH: usize = 40;

/// Standard output, and the claims that did not hold.
#[derive(Debug)]
pub struct Screen {
    look: Look,
    block: char,
    problems: Vec<String>,
}

impl Screen {
    /// Looks at the terminal and the environment.
    pub fn new() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
        let utf8 = ["UTF-8", "utf8", "utf-8", "UTF8"].iter().any(|name| locale.ends_with(name));
        Self { look: Look::of_stdout(), block: if utf8 { '█' } else { '#' }, problems: Vec::new() }
    }

    /// Text in a style, where there are styles.
    pub fn styled(&self, style: Style, text: &str) -> String {
        self.look.styled(style, text)
    }

    /// A line.
    pub fn line(&self, text: &str) {
        terminal::print(&format!("{}\n", text.trim_end()));
    }

    /// An indented line.
    pub fn text(&self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// The beginning of a section.
    pub fn heading(&self, text: &str) {
        self.line("");
        self.line(&self.styled(Style::Bold, text));
    }

    /// A bar of a part's length.
    pub fn bar(&self, part: usize, whole: usize, width: usize) -> String {
        let length = (part * width + whole / 2) / whole.max(1);
        let bar: String = std::iter::repeat_n(self.block, length).collect();
        // Padded first: colours have no width.
        self.styled(Style::Blue, &format!("{bar:width$}"))
    }

    /// Who got how many connections.
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

    /// A claim and whether it holds.
    pub fn check(&mut self, holds: bool, claim: &str) {
        if holds {
            self.text(&format!("{} {claim}", self.styled(Style::Green, "ok")));
        } else {
            self.text(&format!("{} {claim}", self.styled(Style::Red, "NOT SO:")));
            self.problems.push(claim.to_owned());
        }
    }

    /// The last words; whether everything was as it should be.
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
