//! All flags with their values, in the form in which kube-proxy logs them and serves them on `/flagz`.

use std::fmt::Display;
use std::path::PathBuf;

use clap::{ArgMatches, Command};

use super::flags::IptablesBackend;
use super::values::{Gates, Rate, Switch, Vmodule};
use crate::config::GoDuration;
use crate::config::logging::Quantity;

/// Every flag.
pub fn all(command: &Command, matches: &ArgMatches) -> Vec<(String, String)> {
    let mut shown = Vec::new();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_long() else { continue };
        let values = values(matches, arg.get_id().as_str());
        let text =
            if arg.get_value_delimiter().is_some() { format!("[{}]", values.join(",")) } else { values.concat() };
        shown.push((name.to_owned(), text));
    }
    shown.sort();
    shown
}

fn values(matches: &ArgMatches, id: &str) -> Vec<String> {
    let of_any_type = [
        typed::<String>,
        typed::<Switch>,
        typed::<GoDuration>,
        typed::<i32>,
        typed::<u32>,
        typed::<Rate>,
        typed::<Gates>,
        typed::<Vmodule>,
        typed::<Quantity>,
        typed::<IptablesBackend>,
    ];
    let path = || Some(typed_by::<PathBuf>(matches, id, |path| path.display().to_string()).unwrap_or_default());
    of_any_type.iter().find_map(|typed| typed(matches, id)).or_else(path).unwrap_or_default()
}

fn typed<T: Display + Clone + Send + Sync + 'static>(matches: &ArgMatches, id: &str) -> Option<Vec<String>> {
    typed_by::<T>(matches, id, ToString::to_string)
}

/// The values, if they are of this type and there are any.
fn typed_by<T: Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
    text: impl Fn(&T) -> String,
) -> Option<Vec<String>> {
    Some(matches.try_get_many::<T>(id).ok()??.map(text).collect())
}
