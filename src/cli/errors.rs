//! Error texts and exit codes for unusable command lines, in the words of kube-proxy's parser.

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Output that ends the program.
#[derive(Debug)]
pub struct EarlyExit {
    /// The text.
    pub text: String,
    /// Whether the output was requested, so it is no failure.
    pub asked: bool,
    /// The exit status. That of `diagnose` and `top` is [`USAGE`], because 1 and 2 are answers of `diagnose`.
    pub status: u8,
}

/// The exit status of `diagnose` and `top` where their command line cannot be used: `EINVAL`.
pub const USAGE: u8 = 22;

/// The output for a parse error, in the arguments of a subcommand if there is one.
pub fn stop(error: &clap::Error, command: &Command, subcommand: Option<&str>) -> EarlyExit {
    if error.kind() == ErrorKind::DisplayHelp {
        return EarlyExit { text: error.render().to_string(), asked: true, status: 0 };
    }
    let why =
        reason(error, command).unwrap_or_else(|| error.render().to_string().trim_start_matches("error: ").to_owned());
    let program = command.get_name();
    let Some(subcommand) = subcommand else { return refused(program, why.trim_end()) };
    let status = if ["diagnose", "top"].contains(&subcommand) { USAGE } else { 1 };
    EarlyExit { status, ..refused(&format!("{program} {subcommand}"), why.trim_end()) }
}

/// The output of `--help`.
pub fn help(command: &mut Command) -> EarlyExit {
    EarlyExit { text: command.render_help().to_string(), asked: true, status: 0 }
}

/// That there are arguments; empty ones are shown too.
pub fn arguments(program: &str, arguments: &[String]) -> EarlyExit {
    let shown: Vec<String> = arguments.iter().map(|argument| format!("{argument:?}")).collect();
    refused(program, &format!("{program:?} does not take any arguments, got [{}]", shown.join(" ")))
}

fn refused(program: &str, why: &str) -> EarlyExit {
    EarlyExit {
        text: format!("Usage: {program} [flags]; {program} --help lists them\nError: {why}\n"),
        asked: false,
        status: 1,
    }
}

fn reason(error: &clap::Error, command: &Command) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    // clap shows a flag with the name of its value.
    let flag = || {
        let shown = text(ContextKind::InvalidArg)?;
        // A positional argument is shown as its value's name alone.
        if shown.starts_with('<') { Some(shown) } else { Some(shown.split([' ', '=', '[']).next()?.to_owned()) }
    };
    let both_names = || {
        let flag = flag()?;
        let arg = command.get_arguments().find(|arg| arg.get_long() == flag.strip_prefix("--"));
        Some(arg.and_then(clap::Arg::get_short).map_or(flag.clone(), |short| format!("-{short}, {flag}")))
    };
    match error.kind() {
        ErrorKind::UnknownArgument => text(ContextKind::InvalidArg)
            .filter(|flag| flag.starts_with('-'))
            .map(|flag| format!("unknown flag: {flag}")),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let value = text(ContextKind::InvalidValue)?;
            if value.is_empty() && std::error::Error::source(error).is_none() {
                return Some(format!("flag needs an argument: {}", flag()?));
            }
            let why = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
            let name = both_names()?;
            let word = if name.starts_with('<') { "" } else { " flag" };
            Some(format!("invalid argument {value:?} for {name:?}{word}{why}"))
        }
        _ => None,
    }
}
