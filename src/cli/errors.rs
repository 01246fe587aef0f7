//! What is said about a command line that cannot be used, in the words of kube-proxy's parser.
//!
//! In: an error of clap. Out: a text, where it goes, an exit code. Must not know: what flags mean.

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The end of it: what to print.
#[derive(Debug)]
pub struct Stop {
    /// The text.
    pub text: String,
    /// Whether it was asked for, and so is no failure.
    pub asked: bool,
}

/// What to print about an error.
pub fn stop(error: &clap::Error, command: &Command) -> Stop {
    if error.kind() == ErrorKind::DisplayHelp {
        return Stop { text: error.render().to_string(), asked: true };
    }
    let name = command.get_name();
    let why =
        reason(error, name).unwrap_or_else(|| error.render().to_string().trim_start_matches("error: ").to_owned());
    Stop { text: format!("Usage: {name} [flags]; {name} --help lists them\nError: {}\n", why.trim_end()), asked: false }
}

fn reason(error: &clap::Error, program: &str) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    // clap shows a flag with the name of its value.
    let flag = || Some(text(ContextKind::InvalidArg)?.split([' ', '=', '[']).next()?.to_owned());
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = text(ContextKind::InvalidArg)?;
            if flag.starts_with('-') { Some(format!("unknown flag: {flag}")) } else { Some(arguments(program, &flag)) }
        }
        ErrorKind::InvalidSubcommand => Some(arguments(program, &text(ContextKind::InvalidSubcommand)?)),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let value = text(ContextKind::InvalidValue)?;
            if value.is_empty() && std::error::Error::source(error).is_none() {
                return Some(format!("flag needs an argument: {}", flag()?));
            }
            let why = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
            Some(format!("invalid argument {value:?} for {:?} flag{why}", flag()?))
        }
        _ => None,
    }
}

fn arguments(program: &str, argument: &str) -> String {
    format!("{program:?} does not take any arguments, got [{argument:?}]")
}
