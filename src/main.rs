//! A drop-in kube-proxy: parses, dispatches to a command, sets the exit code.
//!
//! In: arguments. Out: an exit code: 0, or 1 for anything that went wrong. Must not know: how commands are done.

mod cli;
mod config;
mod demo;
mod diagnose;
mod dump;
mod health;
mod health_checks;
mod http;
mod inspect;
mod logging;
mod metrics;
mod reporter;
mod run;
mod servers;
mod source;
mod terminal;
mod trace;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing::{error, warn};

use self::cli::{Cli, Command};

/// The Kubernetes release whose behaviour this one has.
const KUBERNETES: &str = "v1.36.2";

fn main() -> ExitCode {
    let (cli, warnings) = match parse() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    if cli.flags.version {
        println!("Kubernetes {KUBERNETES} (kube-proxy in Rust {})", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    // Whoever gives a command wants to read its answer, not the log.
    let quiet = cli.command.is_some() && cli.flags.verbosity == 0;
    logging::init((!quiet).then_some(cli.flags.verbosity));
    for warning in warnings {
        warn!("{warning}");
    }
    let result = match cli.command {
        None => run::run(&cli.flags),
        Some(Command::Demo) => return demo::run(),
        Some(Command::Dump(arguments)) => return dump::run(&arguments),
        Some(Command::Trace(arguments)) => return trace::run(&arguments),
        Some(Command::Diagnose(arguments)) => return diagnose::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            error!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The command line, or the exit code if there is nothing to do but to say something about it.
fn parse() -> Result<(Cli, Vec<String>), ExitCode> {
    let (arguments, warnings) = cli::normalise(std::env::args()).map_err(|message| {
        eprintln!("Error: {message}");
        ExitCode::FAILURE
    })?;
    let cli = Cli::try_parse_from(arguments).map_err(|error| {
        // kube-proxy ends with 1, clap would with 2.
        let _ = error.print();
        if error.kind() == ErrorKind::DisplayHelp { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })?;
    Ok((cli, warnings))
}
