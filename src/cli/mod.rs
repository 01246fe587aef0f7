//! Parses the command line.
//!
//! The result is a [`CommandLine`]: a command, [`Flags`], and the
//! [`KubeProxyConfiguration`](crate::config::KubeProxyConfiguration) that they stand for. Flag names accept `_` for `-`, and
//! switches accept `--switch=true`.

mod errors;
mod file;
mod flags;
mod more_flags;
mod shown;
mod values;

use std::any::TypeId;
use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::errors::EarlyExit;
pub use self::file::EffectiveConfig;
pub use self::flags::{Flags, IptablesBackend, Source as SourceFlags};
use self::values::Switch;

/// kube-proxy: makes the kernel of a node send packets for Services to their endpoints.
#[derive(Debug, Parser)]
#[command(name = "kube-proxy", disable_version_flag = true, disable_help_flag = true)]
#[command(args_override_self = true, max_term_width = 100)]
struct Cli {
    /// What to do; without a command, run the proxy
    #[command(subcommand)]
    command: Option<Command>,
    /// What kube-proxy takes if it is empty
    #[arg(hide = true)]
    arguments: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

/// Commands for people.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the proxy at work in network namespaces of its own, without a cluster and without touching this host's rules
    Demo,
    /// Show what this node does with Services: addresses, endpoints, rules, flows, and what differs from what should be
    Dump(crate::dump::Arguments),
    /// Walk a packet through the rules in the kernel, without sending it
    Trace(crate::trace::Arguments),
    /// Say what will behave otherwise on this node in nftables mode, and what to set; status 0: nothing, 1: something, 2: unknown
    Preflight(crate::preflight::Arguments),
    /// Show new connections a second by Service and endpoint, from the kernel's counters; status 2: not counted or unreadable, 22: usage error
    Top(crate::top::Arguments),
    /// Find out why a connection to a Service fails; status 0: healthy, 1: cause found, 2: unknown, 22: usage error
    Diagnose(crate::diagnose::Arguments),
}

/// A parsed command line.
#[derive(Debug)]
pub struct CommandLine {
    /// What to do; `None`: run.
    pub command: Option<Command>,
    /// The flags, given or not.
    pub flags: Flags,
    /// The names of the flags given.
    pub given: BTreeSet<String>,
    /// All flags with their values, as kube-proxy shows them, by name.
    pub shown: Vec<(String, String)>,
}

/// Parses a command line; the first argument is the program.
///
/// # Errors
/// What to print, and with which code to end.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<CommandLine, EarlyExit> {
    let arguments: Vec<String> = arguments.into_iter().map(normalise).collect();
    let mut command = command();
    let first = arguments.get(1).cloned().unwrap_or_default();
    let subcommand = command.get_subcommands().map(clap::Command::get_name).find(|name| *name == first);
    let subcommand = subcommand.map(str::to_owned);
    let stop = |error: &clap::Error, command: &clap::Command| errors::stop(error, command, subcommand.as_deref());
    let arguments = match &subcommand {
        Some(name) => with_proxy_flags_last(arguments, &command, name),
        None => arguments,
    };
    let matches = command.try_get_matches_from_mut(arguments).map_err(|error| stop(&error, &command))?;
    let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let names = flag_names(&command);
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| stop(&error, &command))?;
    if cli.flags.general.help.0 {
        return Err(errors::help(&mut command));
    }
    if cli.arguments.iter().any(|argument| !argument.is_empty()) {
        return Err(errors::arguments(command.get_name(), &cli.arguments));
    }
    let Flags { general, source, .. } = &mut cli.flags;
    // As for kube-proxy, `--config=` is no file.
    for path in [&mut general.config, &mut general.write_config_to, &mut source.objects] {
        path.take_if(|path| path.as_os_str().is_empty());
    }
    Ok(CommandLine {
        given: names.iter().filter(|(id, _)| given(&&**id)).map(|(_, name)| name.clone()).collect(),
        shown: shown::all(&command, &matches),
        command: cli.command,
        flags: cli.flags,
    })
}

/// What clap has to know; here, what all flags of a kind have in common.
fn command() -> clap::Command {
    // Help of the proxy itself is a switch like others, as with kube-proxy.
    let help = || clap::Arg::new("help").short('h').long("help").help("Print help").action(ArgAction::Help);
    Cli::command().after_help(AFTER_HELP).mut_subcommands(|command| command.arg(help())).mut_args(|arg| {
        let is_switch = arg.get_value_parser().type_id() == TypeId::of::<Switch>();
        let says_nothing = arg.get_default_values() == [""];
        let arg = if is_switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg };
        arg.hide_default_value(says_nothing)
    })
}

const AFTER_HELP: &str = "Durations are written like 30s or 1h30m. kube-proxy's flags for Windows, --boot-id-file, \
                          --machine-id-file, and the deprecated --healthz-port and --metrics-port are taken too.";

/// The id of the argument of a command that takes flags of the proxy.
const PROXY_FLAGS: &str = "proxy_flags";

/// Moves flags that are the proxy's and not the command's own behind `--`, where the command takes them.
fn with_proxy_flags_last(arguments: Vec<String>, command: &clap::Command, subcommand: &str) -> Vec<String> {
    let Some(of_command) = command.find_subcommand(subcommand) else { return arguments };
    if of_command.get_arguments().all(|arg| arg.get_id() != PROXY_FLAGS) {
        return arguments;
    }
    let find = |command: &clap::Command, word: &str| {
        let name = word.strip_prefix("--")?.split('=').next()?.to_owned();
        let found = command.get_arguments().find(|arg| arg.get_long() == Some(&name));
        found.map(|arg| arg.get_action().takes_values() && arg.get_value_parser().type_id() != TypeId::of::<Switch>())
    };
    let (mut own, mut moved) = (Vec::new(), Vec::new());
    let mut words = arguments.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        let (takes_value, to) = match (find(of_command, &word), find(command, &word)) {
            (Some(takes_value), _) => (takes_value, &mut own),
            (None, Some(takes_value)) => (takes_value, &mut moved),
            (None, None) => (false, &mut own),
        };
        let has_value = word.contains('=');
        to.push(word);
        if takes_value && !has_value {
            to.extend(words.next());
        }
    }
    moved.extend(words);
    if !moved.is_empty() {
        own.push("--".to_owned());
        own.extend(moved);
    }
    own
}

/// The ids and names of flags.
fn flag_names(command: &clap::Command) -> Vec<(String, String)> {
    let long = |arg: &clap::Arg| Some((arg.get_id().to_string(), arg.get_long()?.to_owned()));
    command.get_arguments().filter_map(long).collect()
}

/// `_` in the name of a flag is `-`.
fn normalise(argument: String) -> String {
    // What follows `--` alone is no flag; kube-proxy takes no arguments, so it does not matter.
    let Some(body) = argument.strip_prefix("--").filter(|body| !body.is_empty()) else { return argument };
    match body.split_once('=') {
        Some((name, value)) => format!("--{}={value}", name.replace('_', "-")),
        None => format!("--{}", body.replace('_', "-")),
    }
}

#[cfg(test)]
mod kubeadm;
#[cfg(test)]
mod surface;
#[cfg(test)]
mod tests;
