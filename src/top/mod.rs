//! `kube-proxy top`: new connections a second to Services and endpoints, from the counters that the kernel keeps.
//!
//! It reads and writes nothing else, and works beside any kube-proxy. On a terminal the table is drawn anew every
//! interval; elsewhere tables follow each other. Exit status 2: nothing counts, or counters cannot be read; 22: usage error.

mod balance;
mod rates;
mod screen;
mod table;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use proxier_inspect::node::read_error::ReadError;

use self::rates::{LastCounts, Order, Row, sort};
use self::screen::{Event, Screen, sleep_until};
use self::table::{Layout, render};
use crate::config::GoDuration;
use crate::inspect::arguments::Sources;
use crate::inspect::traffic::{NodeTraffic, TrafficReader};
use crate::terminal::Terminal;

/// The exit status after an error.
const FAILED: u8 = 2;
/// The shortest interval.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// The number of failed reads in a row that end the command: rules that change during every read end sometime.
const MAX_FAILURES: u32 = 5;
/// The pause between attempts at the first read.
const PAUSE: Duration = Duration::from_millis(300);

/// The arguments of `top`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The order of Services
    #[arg(long, value_enum, default_value_t)]
    sort: Order,
    /// How long connections are counted for each table
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    interval: GoDuration,
    /// How many tables to show, 0 for any number; if unset, any number on a terminal, else one
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Only Services in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Show endpoints too, below each Service port
    #[arg(short, long)]
    endpoints: bool,
    /// Where the names of IPVS mode come from.
    #[command(flatten)]
    sources: Sources,
}

fn interval(text: &str) -> Result<GoDuration, String> {
    let interval: GoDuration = text.parse()?;
    let is_enough = interval.to_std() >= MIN_INTERVAL;
    if is_enough { Ok(interval) } else { Err(format!("must be at least {MIN_INTERVAL:?}")) }
}

/// Runs the command until its last table, or until it is interrupted, which is no failure.
pub fn run(arguments: &Arguments) -> ExitCode {
    match show(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // If standard error is closed too, the exit status has to do.
            let _ = writeln!(io::stderr(), "Error: {problem}");
            ExitCode::from(FAILED)
        }
    }
}

fn show(arguments: &Arguments) -> Result<(), String> {
    let mut view = View::new(arguments)?;
    let can_redraw = io::stdout().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb");
    let left = match arguments.count {
        Some(0) => None,
        None => (!io::stdout().is_terminal()).then_some(1),
        count => count,
    };
    if can_redraw && left != Some(1) { view.redraw(left) } else { view.print(left) }
}

/// The live counts.
struct View<'a> {
    arguments: &'a Arguments,
    reader: TrafficReader,
    last: LastCounts,
    last_read: Instant,
    /// Failed reads in a row, and why the last one failed.
    failures: u32,
    failure: Option<String>,
    rows: Vec<Row>,
    notes: Vec<String>,
    /// The time that the rows were counted for.
    counted_for: Duration,
}

impl<'a> View<'a> {
    /// Reads the counters once, from which on connections are new.
    fn new(arguments: &'a Arguments) -> Result<Self, String> {
        let mut reader = TrafficReader::new(arguments.sources.clone());
        let traffic = first_read(&mut reader)?;
        if traffic.samples.is_empty() {
            let nothing = "this node has no rules of a kube-proxy for Services with endpoints".to_owned();
            return Err(if traffic.notes.is_empty() { nothing } else { traffic.notes.join("\n") });
        }
        let mut view = Self {
            arguments,
            reader,
            last: LastCounts::default(),
            last_read: Instant::now(),
            failures: 0,
            failure: None,
            rows: Vec::new(),
            notes: Vec::new(),
            counted_for: Duration::ZERO,
        };
        view.take(traffic);
        Ok(view)
    }

    /// The time of the next read.
    fn next_read(&self) -> Instant {
        let since = self.last_read + self.arguments.interval.to_std() * (self.failures + 1);
        since.max(Instant::now())
    }

    /// Reads the counters. If that fails, the rows stay; it fails for good after some times.
    fn read(&mut self) -> Result<(), String> {
        match self.reader.read() {
            Ok(traffic) => {
                (self.failures, self.failure) = (0, None);
                self.take(traffic);
                Ok(())
            }
            Err(error) if error.is_denied || self.failures + 1 >= MAX_FAILURES => Err(error.to_string()),
            Err(error) => {
                self.failures += 1;
                self.failure = Some(error.to_string());
                Ok(())
            }
        }
    }

    fn take(&mut self, mut traffic: NodeTraffic) {
        let now = Instant::now();
        if let Some(namespace) = &self.arguments.namespace {
            traffic.samples.retain(|(_, sample)| *sample.port.service.namespace == **namespace);
        }
        self.rows = self.last.advance(&traffic.samples);
        sort(&mut self.rows, self.arguments.sort);
        self.counted_for = now - self.last_read;
        self.last_read = now;
        if let Some(every) = traffic.updated_every.filter(|every| *every > self.arguments.interval.to_std()) {
            traffic.notes.push(format!("the kernel updates the counts of virtual servers only every {every:?}"));
        }
        if self.arguments.endpoints && self.rows.iter().all(|row| row.endpoints.is_empty()) && !self.rows.is_empty() {
            let why = "endpoints are not counted: start kube-proxy with --service-metrics=Endpoints in nftables mode";
            traffic.notes.push(why.to_owned());
        }
        self.notes = traffic.notes;
    }

    fn text(&self, lines: Option<usize>, width: usize) -> String {
        let terminal = Terminal { width, ..Terminal::of_stdout() };
        let notes: Vec<&str> = self.failure.iter().chain(&self.notes).map(String::as_str).collect();
        render(&self.rows, &notes, self.counted_for, Layout::new(terminal, lines, self.arguments.endpoints))
    }

    /// Draws tables on a terminal; the last one stays there.
    fn redraw(&mut self, mut left: Option<u64>) -> Result<(), String> {
        let screen = Screen::enter()?;
        let mut is_drawn = screen.draw("counting connections …\n").is_ok();
        let mut has_table = false;
        while is_drawn && left != Some(0) {
            match screen.wait(self.next_read()) {
                Event::Stop => break,
                Event::Redraw if !has_table => continue,
                Event::Redraw => {}
                Event::Elapsed => {
                    self.read()?;
                    has_table = true;
                    left = left.map(|left| left - u64::from(self.failure.is_none()));
                }
            }
            is_drawn = screen.draw(&self.text(height(), Terminal::of_stdout().width)).is_ok();
        }
        drop(screen);
        if has_table { self.write(height()) } else { Ok(()) }
    }

    /// Prints one table after the other.
    fn print(&mut self, mut left: Option<u64>) -> Result<(), String> {
        let mut is_first = true;
        while left != Some(0) {
            sleep_until(self.next_read());
            self.read()?;
            if let Some(failure) = &self.failure {
                let _ = writeln!(io::stderr(), "Warning: {failure}");
                continue;
            }
            if !std::mem::take(&mut is_first) && writeln!(io::stdout()).is_err() {
                return Ok(());
            }
            self.write(None)?;
            left = left.map(|left| left - 1);
        }
        Ok(())
    }

    /// Writes the table. Names are cut only where a terminal, or COLUMNS, sets a width.
    fn write(&self, lines: Option<usize>) -> Result<(), String> {
        let has_width = io::stdout().is_terminal() || std::env::var_os("COLUMNS").is_some();
        let width = if has_width { Terminal::of_stdout().width } else { usize::from(u16::MAX) };
        let mut out = io::stdout().lock();
        match out.write_all(self.text(lines, width).as_bytes()).and_then(|()| out.flush()) {
            // The reader closed the pipe, as in `top | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            written => written.map_err(|error| format!("cannot write the output: {error}")),
        }
    }
}

/// The first read, with some attempts unless rights are missing.
fn first_read(reader: &mut TrafficReader) -> Result<NodeTraffic, ReadError> {
    let mut failures = 0;
    loop {
        match reader.read() {
            Err(error) if !error.is_denied && failures + 1 < MAX_FAILURES => failures += 1,
            read => return read,
        }
        sleep(PAUSE);
    }
}

/// The lines of the terminal.
fn height() -> Option<usize> {
    terminal_size::terminal_size().map(|(_, height)| usize::from(height.0))
}
