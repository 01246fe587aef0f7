//! Text output: tables that fit the width, colours, progress, and the exit status of commands.
//!
//! Colours are used on a terminal only, and never with `NO_COLOR`.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

/// The width where there is no terminal.
const DEFAULT_WIDTH: usize = 100;
/// How long work runs before its progress is shown, and between two updates.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);

/// A text style.
#[derive(Clone, Copy, Debug)]
pub enum Style {
    /// A heading.
    Bold,
    /// Secondary text.
    Dim,
    /// Healthy.
    Green,
    /// Unhealthy or missing.
    Red,
    /// A warning.
    Yellow,
    /// Data.
    Blue,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Red => "31",
            Self::Yellow => "33",
            Self::Blue => "34",
        }
    }
}

/// What the output device can show.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Whether it shows colours.
    pub colours: bool,
    /// Characters per line.
    pub width: usize,
}

impl Terminal {
    /// The capabilities of standard output.
    #[must_use]
    pub fn of_stdout() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let terminal = io::stdout().is_terminal();
        let colours = terminal && set("NO_COLOR").is_none() && set("TERM").is_some_and(|t| t != "dumb");
        let columns = set("COLUMNS").and_then(|columns| columns.parse().ok());
        let width = columns
            .or_else(|| terminal_size::terminal_size().filter(|_| terminal).map(|(width, _)| usize::from(width.0)));
        Self { colours, width: width.unwrap_or(DEFAULT_WIDTH).max(40) }
    }

    /// No colours and the default width, for files and HTTP.
    #[must_use]
    pub fn plain() -> Self {
        Self { colours: false, width: DEFAULT_WIDTH }
    }

    /// Applies a style, if the device shows colours.
    #[must_use]
    pub fn styled(self, style: Style, text: &str) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
    }
}

/// Rows under headings. The last column gets the remaining width and is wrapped.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(indent: usize, headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|text| (*text).to_owned()).collect()], indent }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Renders the table; empty without rows. Columns that are empty in all rows are omitted.
    #[must_use]
    pub fn text(&self, terminal: Terminal) -> String {
        if self.rows.len() < 2 {
            return String::new();
        }
        let columns = self.rows[0].len();
        let width_of = |rows: &[Vec<String>], at: usize| {
            rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let shown: Vec<usize> = (0..columns).filter(|at| width_of(&self.rows[1..], *at) > 0).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let (mut line, mut used) = (" ".repeat(self.indent), self.indent);
            for (position, at) in shown.iter().enumerate() {
                let cell = row.get(*at).map(String::as_str).unwrap_or_default();
                if position + 1 == shown.len() {
                    let room = terminal.width.saturating_sub(used).max(20);
                    line += &wrapped(cell, room).join(&format!("\n{}", " ".repeat(used)));
                } else {
                    let width = width_of(&self.rows, *at) + 2;
                    line += &format!("{cell:width$}");
                    used += width;
                }
            }
            let line = line.trim_end();
            let line = if number == 0 { terminal.styled(Style::Dim, line) } else { line.to_owned() };
            text += &line;
            text.push('\n');
        }
        text
    }
}

/// Wraps a text at blanks into lines of at most `width` characters; longer words are split.
#[must_use]
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word;
        let mut length = lines.last().map_or(0, |line| line.chars().count());
        if length > 0 && length + 1 + word.chars().count() > width {
            lines.push(String::new());
            length = 0;
        }
        if length > 0 {
            lines.iter_mut().last().into_iter().for_each(|line| line.push(' '));
        }
        while let Some((at, _)) = word.char_indices().nth(width).filter(|_| length == 0) {
            lines.iter_mut().last().into_iter().for_each(|line| line.push_str(&word[..at]));
            lines.push(String::new());
            word = &word[at..];
        }
        lines.iter_mut().last().into_iter().for_each(|line| line.push_str(word));
    }
    lines
}

/// Shows the progress of long work on a terminal, under a label; what it returns counts one step.
#[must_use]
pub fn progress(what: &str) -> Box<dyn FnMut()> {
    let mut progress = Progress::new(what);
    Box::new(move || progress.step())
}

/// The progress of long work.
#[derive(Debug)]
struct Progress {
    what: String,
    terminal: bool,
    since: Instant,
    shown_at: Option<Instant>,
    steps: u64,
}

impl Progress {
    /// Starts at zero. `what`: the label.
    fn new(what: &str) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { what: what.to_owned(), terminal, since: Instant::now(), shown_at: None, steps: 0 }
    }

    /// Counts one step.
    fn step(&mut self) {
        self.steps += 1;
        // Reading the clock costs more than most steps.
        if !self.terminal
            || !self.steps.is_multiple_of(1024)
            || self.shown_at.unwrap_or(self.since).elapsed() < PROGRESS_DELAY
        {
            return;
        }
        self.shown_at = Some(Instant::now());
        eprint!("\r{}: {} … ", self.what, self.steps);
        let _ = io::stderr().flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown_at.is_some() {
            // Erases the line.
            eprint!("\r{}\r", " ".repeat(self.what.len() + 24));
        }
    }
}

/// Writes to standard output. Exits with status 1 if it is closed, as with `| head`.
pub fn print(text: &str) {
    if write(text_output(text.to_owned())).is_err() {
        std::process::exit(1);
    }
}

/// Output that is written piece by piece: a big cluster's has a hundred megabytes.
pub type OutputWriter = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

/// Output of a text.
#[must_use]
pub fn text_output(text: String) -> OutputWriter {
    Box::new(move |out| out.write_all(text.as_bytes()))
}

/// Output of a value as JSON.
#[must_use]
pub fn json(value: impl Serialize + 'static) -> OutputWriter {
    Box::new(move |out| {
        serde_json::to_writer_pretty(&mut *out, &value)?;
        out.write_all(b"\n")
    })
}

fn write(words: OutputWriter) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    words(&mut out).and_then(|()| out.flush())
}

/// Prints a command's output or error; the exit status is 0 or 1.
pub fn answer(found: Result<OutputWriter, String>) -> ExitCode {
    answer_with(found.map(|words| (words, 0)), 1)
}

/// Prints a command's output with the exit status that belongs to it. `failed`: the status after an error.
pub fn answer_with(found: Result<(OutputWriter, u8), String>, failed: u8) -> ExitCode {
    let said = found.and_then(|(words, status)| match write(words) {
        Ok(()) => Ok(status),
        // The reader closed the pipe; as usual, that is not reported.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(failed),
        Err(error) => Err(format!("cannot write the output: {error}")),
    });
    ExitCode::from(said.unwrap_or_else(|problem| {
        // If standard error is closed too, the exit status has to do.
        let _ = writeln!(io::stderr(), "Error: {problem}");
        failed
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_the_width_and_leave_out_empty_columns() {
        let mut table = Table::new(2, &["A", "EMPTY", "WHY"]);
        table.row(vec!["one".to_owned(), String::new(), "a text that is longer than its room".to_owned()]);
        table.row(vec!["three".to_owned(), String::new(), "short".to_owned()]);
        let text = table.text(Terminal { colours: false, width: 40 });
        let expected = "  A      WHY\n  one    a text that is longer than its\n         room\n  three  short\n";
        assert_eq!(text, expected);
        assert!(table.text(Terminal { colours: true, width: 40 }).starts_with("\x1b[2m"));
        assert_eq!(Table::new(0, &["A"]).text(Terminal::plain()), "");
    }

    #[test]
    fn words_longer_than_a_line_are_cut() {
        assert_eq!(wrapped("ab abcdefgh c", 4), ["ab", "abcd", "efgh", "c"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
