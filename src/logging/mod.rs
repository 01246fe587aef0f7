//! Logging in klog's text format, `I1121 00:44:11.102973   14565 run.rs:27] message key=value`, or JSON.
//!
//! `-v 2` adds debug events and `-v 5` trace events; dependencies log at `-v 8` and above, and their warnings always,
//! except those
//! that this program logs itself. `--vmodule` sets the level of single files. Lines are not buffered.

mod line;
mod vmodule;

use std::io::Write as _;
use std::sync::{PoisonError, RwLock};

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use self::line::LogLine;
use crate::config::logging::{Logging, VmoduleItem};

/// The log level of debug events.
const DEBUG_LEVEL: u32 = 2;
/// The log level of trace events.
const TRACE_LEVEL: u32 = 5;
/// The log level of dependencies.
const DEPENDENCY_LEVEL: u32 = 8;
/// Targets that also return every error that they log; this program logs it then.
const DUPLICATE_TARGETS: [&str; 2] = ["kube_client::client::builder", "kube_runtime::watcher"];

/// What is logged, and how.
struct LogConfig {
    /// Log warnings and errors only.
    quiet: bool,
    verbosity: u32,
    vmodule: Vec<VmoduleItem>,
    json: bool,
    split_stream: bool,
}

static LOG_CONFIG: RwLock<LogConfig> =
    RwLock::new(LogConfig { quiet: false, verbosity: 0, vmodule: Vec::new(), json: false, split_stream: false });

/// Starts logging; without a verbosity, only warnings and errors. Does nothing if a logger is installed.
pub fn init(verbosity: Option<u32>) {
    change(|config| (config.quiet, config.verbosity) = (verbosity.is_none(), verbosity.unwrap_or(0)));
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Klog));
}

/// Applies the configuration.
pub fn apply(logging: &Logging) {
    let Logging { json, verbosity, vmodule, split_stream } = logging.clone();
    change(|config| *config = LogConfig { quiet: config.quiet, verbosity, vmodule, json, split_stream });
}

/// Changes the log level at run time.
pub fn set_verbosity(verbosity: u32) {
    change(|config| (config.quiet, config.verbosity) = (false, verbosity));
}

fn change(change: impl FnOnce(&mut LogConfig)) {
    change(&mut LOG_CONFIG.write().unwrap_or_else(PoisonError::into_inner));
    // Whether a call site is enabled is cached there.
    tracing::callsite::rebuild_interest_cache();
}

impl LogConfig {
    fn enables(&self, metadata: &Metadata<'_>) -> bool {
        let ours = ["kube_proxy", "proxier"].iter().any(|name| metadata.target().starts_with(name));
        let from = match *metadata.level() {
            Level::ERROR | Level::WARN if !DUPLICATE_TARGETS.contains(&metadata.target()) => return true,
            _ if !ours => DEPENDENCY_LEVEL,
            Level::DEBUG => DEBUG_LEVEL,
            Level::TRACE => TRACE_LEVEL,
            _ => 0,
        };
        !self.quiet && vmodule::level(&self.vmodule, metadata.file()).unwrap_or(self.verbosity) >= from
    }
}

struct Klog;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Klog {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        LOG_CONFIG.read().unwrap_or_else(PoisonError::into_inner).enables(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (json, split) = {
            let config = LOG_CONFIG.read().unwrap_or_else(PoisonError::into_inner);
            (config.json, config.split_stream)
        };
        let line = LogLine::new(event);
        let text = if json { line.json() } else { line.text() };
        // A failure to write the log cannot be reported.
        let _ = if split && *event.metadata().level() != Level::ERROR {
            std::io::stdout().lock().write_all(text.as_bytes())
        } else {
            std::io::stderr().lock().write_all(text.as_bytes())
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The metadata of the lines that `log` writes.
    fn written(log: impl FnOnce()) -> Vec<&'static Metadata<'static>> {
        struct Keep(Arc<Mutex<Vec<&'static Metadata<'static>>>>);
        impl<S: Subscriber> Layer<S> for Keep {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().expect("not poisoned").push(event.metadata());
            }
        }
        let lines = Arc::<Mutex<_>>::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Keep(lines.clone())), log);
        let lines = lines.lock().expect("not poisoned");
        lines.clone()
    }

    fn config(quiet: bool, verbosity: u32, vmodule: &[(&str, u32)]) -> LogConfig {
        let items = vmodule
            .iter()
            .map(|(pattern, verbosity)| VmoduleItem { file_pattern: (*pattern).to_owned(), verbosity: *verbosity });
        LogConfig { quiet, verbosity, vmodule: items.collect(), json: false, split_stream: false }
    }

    #[test]
    fn lines_are_enabled_by_level_file_and_target() {
        let lines = written(|| {
            tracing::error!("1");
            tracing::info!("2");
            tracing::debug!("3");
            tracing::trace!("4");
            tracing::info!(target: "kube_client", "5");
            tracing::warn!(target: "kube_client", "6");
            tracing::warn!(target: "kube_runtime::watcher", "7");
        });
        let kept = |config: &LogConfig| lines.iter().map(|line| u8::from(config.enables(line))).collect::<Vec<_>>();
        assert_eq!(kept(&config(true, 9, &[])), [1, 0, 0, 0, 0, 1, 0]);
        assert_eq!(kept(&config(false, 0, &[])), [1, 1, 0, 0, 0, 1, 0]);
        assert_eq!(kept(&config(false, 2, &[])), [1, 1, 1, 0, 0, 1, 0]);
        assert_eq!(kept(&config(false, 5, &[])), [1, 1, 1, 1, 0, 1, 0]);
        assert_eq!(kept(&config(false, 8, &[])), [1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(kept(&config(false, 0, &[("api", 5), ("logg*", 2)])), [1, 1, 1, 0, 0, 1, 0]);
        assert_eq!(kept(&config(false, 5, &[("logging", 0)])), [1, 1, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn the_verbosity_can_be_changed_while_it_runs_and_the_files_keep_theirs() {
        let vmodule = vec![VmoduleItem { file_pattern: "api".to_owned(), verbosity: 5 }];
        apply(&Logging { json: false, verbosity: 1, vmodule: vmodule.clone(), split_stream: false });
        set_verbosity(3);
        let now = LOG_CONFIG.read().unwrap_or_else(PoisonError::into_inner);
        assert_eq!((now.verbosity, now.quiet, &now.vmodule), (3, false, &vmodule));
    }
}
