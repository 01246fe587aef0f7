//! Formats one log line, as klog's text or as JSON in the form of Kubernetes components.

use std::fmt::{Debug, Write as _};

use k8s_openapi::jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

/// An event with its fields.
pub struct LogLine {
    metadata: &'static Metadata<'static>,
    time: Timestamp,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl LogLine {
    /// Records an event.
    pub fn new(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut line = Self { metadata, time: Timestamp::now(), message: String::new(), fields: Vec::new() };
        event.record(&mut line);
        line
    }

    fn location(&self) -> String {
        let file = self.metadata.file().and_then(|path| path.rsplit('/').next()).unwrap_or("?");
        format!("{file}:{}", self.metadata.line().unwrap_or(0))
    }

    /// klog's format: the message is quoted if there are fields.
    pub fn text(&self) -> String {
        let severity = match *self.metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let time = self.time.to_zoned(TimeZone::system());
        let mut text =
            format!("{severity}{} {:>7} {}] ", time.strftime("%m%d %H:%M:%S.%6f"), std::process::id(), self.location());
        let _ =
            if self.fields.is_empty() { write!(text, "{}", self.message) } else { write!(text, "{:?}", self.message) };
        for (name, value) in &self.fields {
            let _ = write!(text, " {name}={value}");
        }
        text.push('\n');
        text
    }

    /// One JSON object; `v` is the log level, which warnings and errors do not have.
    pub fn json(&self) -> String {
        let mut text = String::from("{");
        #[allow(clippy::cast_precision_loss)] // exact for the next two centuries
        let milliseconds = self.time.as_microsecond() as f64 / 1000.0;
        let _ = write!(text, "\"ts\":{milliseconds:.4},\"caller\":{:?},", self.location());
        let _ = write!(text, "\"msg\":{}", Value::from(&*self.message));
        let level = match *self.metadata.level() {
            Level::ERROR | Level::WARN => None,
            Level::INFO => Some(0),
            Level::DEBUG => Some(super::DEBUG_LEVEL),
            Level::TRACE => Some(super::TRACE_LEVEL),
        };
        if let Some(level) = level {
            let _ = write!(text, ",\"v\":{level}");
        }
        for (name, value) in &self.fields {
            let _ = write!(text, ",{}:{value}", Value::from(*name));
        }
        text.push_str("}\n");
        text
    }
}

impl Visit for LogLine {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.fields.push((field.name(), value.into()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// The lines of the events of `log`, as text and as JSON.
    fn written(log: impl FnOnce()) -> Vec<(String, String)> {
        struct Keep(Arc<Mutex<Vec<(String, String)>>>);
        impl<S: tracing::Subscriber> Layer<S> for Keep {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let line = LogLine::new(event);
                self.0.lock().expect("not poisoned").push((line.text(), line.json()));
            }
        }
        let lines = Arc::<Mutex<_>>::default();
        let subscriber = tracing_subscriber::registry().with(Keep(lines.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let lines = lines.lock().expect("not poisoned");
        lines.clone()
    }

    #[test]
    fn lines_are_klogs_or_json() {
        let lines = written(|| {
            tracing::info!("plain {}", 1);
            tracing::error!(err = "no \"way\"", count = 3, on = true, "it failed");
            tracing::debug!(path = ?std::path::Path::new("/x"), "seen");
        });
        let pid = std::process::id();
        let text = regex::Regex::new(&format!(r"^I\d{{4}} [\d:]{{8}}\.\d{{6}} +{pid} line.rs:\d+\] plain 1\n$"));
        assert!(text.expect("a regular expression").is_match(&lines[0].0), "{lines:?}");
        let end = "] \"it failed\" err=\"no \\\"way\\\"\" count=3 on=true\n";
        assert!(lines[1].0.starts_with('E') && lines[1].0.ends_with(end), "{lines:?}");

        let json: Vec<Value> = lines.iter().map(|(_, json)| serde_json::from_str(json).expect("JSON")).collect();
        assert_eq!((&json[0]["msg"], &json[0]["v"]), (&"plain 1".into(), &0.into()));
        assert!(json[0]["ts"].as_f64().is_some_and(|ts| ts > 1.6e12), "{lines:?}");
        assert!(json[0]["caller"].as_str().is_some_and(|caller| caller.starts_with("line.rs:")), "{lines:?}");
        let error = serde_json::json!([json[1]["err"], json[1]["count"], json[1]["on"], json[1].get("v")]);
        assert_eq!(error, serde_json::json!(["no \"way\"", 3, true, null]));
        assert_eq!((&json[2]["v"], &json[2]["path"]), (&2.into(), &"\"/x\"".into()));
    }
}
