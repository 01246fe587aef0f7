//! A drop-in kube-proxy, as a library so that fuzz targets and benchmarks can use its decoders; [`main`] is the
//! program.

mod cleanup;
mod cli;
mod client;
mod config;
mod config_watch;
mod containment;
mod demo;
mod diagnose;
mod dump;
mod events;
mod file_watch;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod health_checks;
mod http;
mod inspect;
mod localhost_proxy;
mod logging;
mod metrics;
mod node;
mod preflight;
mod reporter;
mod run;
mod servers;
mod service_metrics;
mod setup;
mod source;
mod stop;
mod terminal;
#[cfg(test)]
mod tests_named;
mod top;
mod trace;
#[doc(hidden)]
pub mod trial;
mod version;

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use proxier_inspect::node::show_progress;
use tracing::error;

use self::cli::{Command, CommandLine};

/// Parses the arguments, runs the command and returns the exit code: 0, or 1 after any error
/// (2 after one of `diagnose` or `top`).
#[must_use]
pub fn main() -> ExitCode {
    containment::abort_on_panic();
    let line = match cli::parse(std::env::args_os().map(|argument| argument.to_string_lossy().into_owned())) {
        Ok(line) => line,
        Err(stop) if stop.asked => {
            say(stdout(), &stop.text);
            return ExitCode::SUCCESS;
        }
        Err(stop) => {
            say(stderr(), &stop.text);
            return ExitCode::from(stop.status);
        }
    };
    match version::parse_flag(&line.flags.general.version) {
        Ok(version::VersionAction::Run) => {}
        Ok(version::VersionAction::Print(text)) => {
            say(stdout(), &format!("{text}\n"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            say(stderr(), &format!("Error: {error}\n"));
            return ExitCode::FAILURE;
        }
    }
    line.deprecations().iter().for_each(|note| say(stderr(), &format!("{note}\n")));
    // A command prints its answer; the log would only get in the way.
    let verbosity = line.flags.logs.verbosity;
    let quiet = line.command.is_some() && verbosity == 0;
    logging::init((!quiet).then_some(verbosity));
    let CommandLine { command, .. } = &line;
    if matches!(command, Some(Command::Dump(_) | Command::Trace(_) | Command::Diagnose(_) | Command::Preflight(_))) {
        inspect::limit_tools();
        show_progress(terminal::progress);
    }
    let result = match command {
        None => run::run(&line),
        Some(Command::Demo) => return demo::run(),
        Some(Command::Dump(arguments)) => return dump::run(arguments),
        Some(Command::Trace(arguments)) => return trace::run(arguments),
        Some(Command::Diagnose(arguments)) => return diagnose::run(arguments),
        Some(Command::Preflight(arguments)) => return preflight::run(arguments),
        Some(Command::Top(arguments)) => return top::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            error!(err = message, "command failed");
            ExitCode::FAILURE
        }
    }
}

/// Writes text and ignores errors: a closed pipe, as in `kube-proxy --help | head`, must not panic.
fn say(mut to: impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}
