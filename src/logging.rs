//! The log, in klog's form: `I1121 00:44:11.102973   14565 run.rs:27] message key=value`.
//!
//! In: tracing events. Out: lines on standard error. Must not know: what is logged.
//! `-v 2` adds debug events, `-v 5` trace events; other crates speak up from `-v 8` on, or when something is wrong.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;

use k8s_openapi::jiff::{Timestamp, tz::TimeZone};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

const DEBUG_FROM: u32 = 2;
const TRACE_FROM: u32 = 5;
const FOREIGN_FROM: u32 = 8;

/// Logs from now on; without a verbosity, only what is wrong. Does nothing if something logs already.
pub fn init(verbosity: Option<u32>) {
    let subscriber = tracing_subscriber::registry().with(Klog { verbosity });
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Klog {
    verbosity: Option<u32>,
}

impl Klog {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let ours = ["kube_proxy", "proxier"].iter().any(|name| metadata.target().starts_with(name));
        let from = match *metadata.level() {
            Level::ERROR | Level::WARN => return true,
            _ if !ours => FOREIGN_FROM,
            Level::INFO => 0,
            Level::DEBUG => DEBUG_FROM,
            Level::TRACE => TRACE_FROM,
        };
        self.verbosity.is_some_and(|verbosity| verbosity >= from)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Klog {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let now = Timestamp::now().to_zoned(TimeZone::system());
        let file = metadata.file().and_then(|path| path.rsplit('/').next()).unwrap_or("?");
        let mut line = Line::default();
        let _ = write!(
            line.text,
            "{severity}{} {:>7} {file}:{}] ",
            now.strftime("%m%d %H:%M:%S.%6f"),
            std::process::id(),
            metadata.line().unwrap_or(0)
        );
        event.record(&mut line);
        line.text.push_str(&line.fields);
        line.text.push('\n');
        // There is nobody to tell that the log cannot be written.
        let _ = std::io::stderr().lock().write_all(line.text.as_bytes());
    }
}

#[derive(Default)]
struct Line {
    text: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = if field.name() == "message" {
            write!(self.text, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
