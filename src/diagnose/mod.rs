//! stub
use std::process::ExitCode;
/// The arguments of `diagnose`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {}
pub fn run(_: &Arguments) -> ExitCode {
    ExitCode::FAILURE
}
