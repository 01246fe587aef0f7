//! A drop-in kube-proxy: parses, dispatches to a command, sets the exit code.
//!
//! In: arguments. Out: an exit code: 0, or 1 for anything that went wrong. Must not know: how commands are done.

mod cleanup;
mod cli;
mod config;
mod config_watch;
mod demo;
mod diagnose;
mod dump;
mod events;
mod file_watch;
mod health;
mod health_checks;
mod http;
mod inspect;
mod logging;
mod metrics;
mod node;
mod reporter;
mod run;
mod servers;
mod setup;
mod source;
mod stop;
mod terminal;
#[cfg(test)]
mod tests_named;
mod trace;
mod version;

use std::process::ExitCode;

use tracing::error;

use self::cli::{Command, Line};

fn main() -> ExitCode {
    let line = match cli::parse(std::env::args()) {
        Ok(line) => line,
        Err(stop) if stop.asked => {
            print!("{}", stop.text);
            return ExitCode::SUCCESS;
        }
        Err(stop) => {
            eprint!("{}", stop.text);
            return ExitCode::FAILURE;
        }
    };
    match version::asked(&line.flags.general.version) {
        Ok(version::Asked::Nothing) => {}
        Ok(version::Asked::Print(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::FAILURE;
        }
    }
    line.deprecations().iter().for_each(|note| eprintln!("{note}"));
    // Whoever gives a command wants to read its answer, not the log.
    let verbosity = line.flags.logs.verbosity;
    let quiet = line.command.is_some() && verbosity == 0;
    logging::init((!quiet).then_some(verbosity));
    let Line { command, .. } = &line;
    let result = match command {
        None => run::run(&line),
        Some(Command::Demo) => return demo::run(),
        Some(Command::Dump(arguments)) => return dump::run(arguments),
        Some(Command::Trace(arguments)) => return trace::run(arguments),
        Some(Command::Diagnose(arguments)) => return diagnose::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            error!(err = message, "command failed");
            ExitCode::FAILURE
        }
    }
}
