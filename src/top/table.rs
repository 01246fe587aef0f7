//! The text of a table, for any width.

use std::fmt::Write;
use std::time::Duration;

use super::balance::Balance;
use super::rates::{EndpointRow, Row};
use crate::terminal::{Style, Terminal, wrapped};

/// The least width of names.
const NAME: usize = 20;
/// The widths of the columns of numbers with their gaps.
const RATE: usize = 10;
const NEW: usize = 9;
const TOTAL: usize = 12;
const ENDPOINTS: usize = 5;
/// The room of a mark: of a word, or where there is enough, of an endpoint with its share.
const WORD: usize = 9;
const MARK: usize = 31;
/// The width from which new and all connections and the number of endpoints are shown, and that with room for long marks.
const WIDE: usize = 72;
const VERY_WIDE: usize = 100;

/// How a table is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    terminal: Terminal,
    /// The most lines; `None`: any number.
    lines: Option<usize>,
    /// Whether endpoints are shown.
    endpoints: bool,
}

impl Layout {
    /// A layout for a terminal, which may have a height.
    #[must_use]
    pub fn new(terminal: Terminal, lines: Option<usize>, endpoints: bool) -> Self {
        Self { terminal, lines, endpoints }
    }

    fn is_wide(self) -> bool {
        self.terminal.width >= WIDE
    }

    /// The width of names for these rows: as wide as needed, and as there is room.
    fn name_width(self, rows: &[Row]) -> usize {
        let numbers = RATE + if self.is_wide() { NEW + TOTAL + ENDPOINTS } else { 0 };
        let others = numbers + if self.terminal.width >= VERY_WIDE { MARK } else { WORD };
        let room = self.terminal.width.saturating_sub(others).max(NAME);
        let longest = rows.iter().map(|row| name(row).chars().count()).max().unwrap_or(0);
        longest.clamp(NAME, room)
    }
}

fn name(row: &Row) -> String {
    let name = row.port.to_string();
    format!("{}/{}", name.trim_start_matches('/'), row.port.protocol.name())
}

/// Renders rows that were counted for `interval`, below notes.
#[must_use]
pub fn render(rows: &[Row], notes: &[&str], interval: Duration, layout: Layout) -> String {
    let table = Rows {
        seconds: interval.as_secs_f64().max(0.001),
        width: layout.name_width(rows),
        balance: Balance::of(rows),
        layout,
    };
    let mut lines = vec![summary(rows, interval, layout)];
    let notes = notes.iter().flat_map(|note| wrapped(note, layout.terminal.width));
    lines.extend(notes.map(|line| layout.terminal.styled(Style::Yellow, &line)));
    lines.push(layout.terminal.styled(Style::Dim, &table.heading()));
    for row in rows {
        lines.push(table.service(row));
        if layout.endpoints {
            lines.extend(table.endpoints(row));
        }
    }
    if let Some(most) = layout.lines
        && lines.len() >= most
    {
        // The last line is for the cursor, and the one before says how many there are.
        let kept = most.saturating_sub(2);
        let hidden = lines.len() - kept;
        lines.truncate(kept);
        lines.push(layout.terminal.styled(Style::Dim, &format!("… {hidden} more lines")));
    }
    lines.join("\n") + "\n"
}

fn summary(rows: &[Row], interval: Duration, layout: Layout) -> String {
    let new: u64 = rows.iter().map(|row| row.new).sum();
    let unused = rows.iter().filter(|row| row.is_unused()).count();
    let text = format!(
        "{} connections/s to {} Service ports, {unused} unused, in {:.1} s",
        rate(new, interval.as_secs_f64().max(0.001)),
        rows.len(),
        interval.as_secs_f64()
    );
    layout.terminal.styled(Style::Bold, &cut(&text, layout.terminal.width))
}

/// Renders the rows of a table.
struct Rows {
    /// The time that was counted for.
    seconds: f64,
    /// The width of names.
    width: usize,
    balance: Balance,
    layout: Layout,
}

impl Rows {
    fn heading(&self) -> String {
        let mut text = format!("{:width$}{:>RATE$}", "SERVICE", "CONN/S", width = self.width);
        if self.layout.is_wide() {
            let _ = write!(text, "{:>NEW$}{:>TOTAL$}{:>ENDPOINTS$}", "NEW", "TOTAL", "EPS");
        }
        text
    }

    /// The cells of names and numbers.
    fn cells(&self, name: &str, new: u64, total: u64) -> String {
        let rate = rate(new, self.seconds);
        let mut text = format!("{:width$}{rate:>RATE$}", cut(name, self.width), width = self.width);
        if self.layout.is_wide() {
            let _ = write!(text, "{new:>NEW$}{total:>TOTAL$}");
        }
        text
    }

    fn service(&self, row: &Row) -> String {
        let mut text = self.cells(&name(row), row.new, row.total);
        if self.layout.is_wide() {
            let count = if row.endpoints.is_empty() { "-".to_owned() } else { row.endpoints.len().to_string() };
            let _ = write!(text, "{count:>ENDPOINTS$}");
        }
        let terminal = self.layout.terminal;
        let room = terminal.width.saturating_sub(text.chars().count() + 2);
        let mark = if row.is_unused() {
            terminal.styled(Style::Dim, &cut("unused", room))
        } else if let Some(uneven) = self.balance.uneven(row) {
            let mark = format!("uneven: {} x{:.1}", uneven.address, uneven.factor);
            let mark = if mark.chars().count() <= room { &mark } else { "uneven" };
            terminal.styled(Style::Yellow, &cut(mark, room))
        } else {
            return text;
        };
        format!("{text}  {mark}")
    }

    fn endpoints(&self, row: &Row) -> impl Iterator<Item = String> {
        let all: u64 = row.endpoints.iter().map(|endpoint| endpoint.new).sum();
        row.endpoints.iter().map(move |endpoint: &EndpointRow| {
            let mut text = self.cells(&format!("  {}", endpoint.address), endpoint.new, endpoint.total);
            if let Some(percent) = (endpoint.new * 100).checked_div(all) {
                let _ = write!(text, "{percent:>4} %");
            }
            if endpoint.is_draining {
                text += "  draining";
            }
            text
        })
    }
}

/// A rate with one digit after the point, or none if it is large.
#[allow(clippy::cast_precision_loss)] // a display of three or four digits
fn rate(count: u64, seconds: f64) -> String {
    let rate = count as f64 / seconds;
    if rate >= 1000.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

/// The text in at most `width` characters.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proxier::model::{Protocol, ServicePortName};

    use super::*;

    fn row(name: &str, counts: &[(u64, u64)]) -> Row {
        let endpoint = |(number, (new, total)): (u8, &(u64, u64))| EndpointRow {
            address: ([10, 244, 1, number], 8080).into(),
            new: *new,
            total: *total,
            is_draining: false,
        };
        Row {
            port: ServicePortName::parse(name, Protocol::Tcp).expect("a name"),
            new: counts.iter().map(|(new, _)| new).sum(),
            total: counts.iter().map(|(_, total)| total).sum(),
            endpoints: (1..).zip(counts).map(endpoint).collect(),
            is_comparable: true,
        }
    }

    fn text(width: usize, lines: Option<usize>, endpoints: bool) -> String {
        let rows = [
            row("shop/checkout:https", &[(900, 9000), (30, 300)]),
            row("default/a-service-with-a-name-that-is-rather-long:http", &[(1, 5)]),
            row("default/idle", &[(0, 0), (0, 0)]),
        ];
        let layout = Layout::new(Terminal { colours: false, width }, lines, endpoints);
        render(&rows, &["a note that is longer than a narrow terminal is wide"], Duration::from_secs(2), layout)
    }

    #[test]
    fn wide_table_has_totals_and_marks_unused_and_uneven_services() {
        let expected = "\
465.5 connections/s to 3 Service ports, 1 unused, in 2.0 s
a note that is longer than a narrow terminal is wide
SERVICE                                        CONN/S      NEW       TOTAL  EPS
shop/checkout:https/tcp                         465.0      930        9300    2  uneven: 10.244.1.1:8080 x1.9
  10.244.1.1:8080                               450.0      900        9000  96 %
  10.244.1.2:8080                                15.0       30         300   3 %
default/a-service-with-a-name-that-is-rath…       0.5        1           5    1
  10.244.1.1:8080                                 0.5        1           5 100 %
default/idle/tcp                                  0.0        0           0    2  unused
  10.244.1.1:8080                                 0.0        0           0
  10.244.1.2:8080                                 0.0        0           0
";
        assert_eq!(text(110, None, true), expected);
    }

    #[test]
    fn narrow_table_has_rates_and_marks() {
        let expected = "\
465.5 connections/s to 3 Service ports, 1 unused, in 2.0 s
a note that is longer than a narrow terminal is wide
SERVICE                                      CONN/S
shop/checkout:https/tcp                       465.0  uneven
default/a-service-with-a-name-that-is-ra…       0.5
default/idle/tcp                                0.0  unused
";
        assert_eq!(text(60, None, false), expected);
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_and_none_is_below_it() {
        for width in [40, 50, 60, 71, 72, 80, 99, 100, 160, 200] {
            for line in text(width, None, true).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
        let short = text(80, Some(6), false);
        assert_eq!(short.lines().count(), 5, "{short}");
        assert!(short.ends_with("… 2 more lines\n"), "{short}");
        assert_eq!(text(80, Some(50), false).lines().count(), 6);
    }
}
