//! Running the system's programs.
//!
//! In: a command, perhaps input. Out: its output, or an error in its own words. Must not know: what programs mean.

use std::io::{BufReader, Read, Write};
use std::process::{ChildStdout, Command, Stdio};

use thiserror::Error;

/// A program that could not be run or did not end well.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It is not there or may not be run.
    #[error("cannot run {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program and its arguments.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// Its output could not be understood.
    #[error("{program}: {source}")]
    Output {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
}

/// What a command line looks like in a message.
fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A program's complaint in one line, without its advice to read its manual.
fn said(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    lines.collect::<Vec<_>>().join(" ")
}

fn start(command: &mut Command) -> Result<std::process::Child, ToolError> {
    command.spawn().map_err(|source| ToolError::Start { program: words(command), source })
}

/// Runs a command to its end, with the pieces of `input` on its standard input, and returns its output.
///
/// # Errors
/// If it cannot be run, or ends with an error.
pub(super) fn run<'a>(
    command: &mut Command,
    input: impl IntoIterator<Item = &'a str, IntoIter: Send>,
) -> Result<Vec<u8>, ToolError> {
    let mut child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (stdin, pieces) = (child.stdin.take(), input.into_iter());
    let output = std::thread::scope(|scope| {
        // A program may complain at length before it has read everything: somebody has to listen meanwhile.
        scope.spawn(move || {
            let mut pieces = pieces;
            // One that ends before it has read everything says why by other means.
            stdin.map(|mut stdin| pieces.try_for_each(|piece| stdin.write_all(piece.as_bytes())))
        });
        child.wait_with_output()
    });
    let output = output.map_err(|source| ToolError::Output { program: words(command), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = said(&String::from_utf8_lossy(&output.stderr));
    Err(ToolError::Failed { program: words(command), status: output.status, stderr })
}

/// Runs a command and hands its output to `read` as it comes.
///
/// # Errors
/// If it cannot be run or ends with an error, or `read` does.
pub(super) fn stream<T>(
    command: &mut Command,
    read: impl FnOnce(BufReader<ChildStdout>) -> std::io::Result<T>,
) -> Result<T, ToolError> {
    let mut child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let output = |source| ToolError::Output { program: words(command), source };
    let value = match child.stdout.take() {
        Some(stdout) => read(BufReader::with_capacity(1 << 16, stdout)),
        None => Err(std::io::Error::other("no output")),
    };
    let mut stderr = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        let _ = pipe.read_to_string(&mut stderr);
    }
    let status = child.wait().map_err(output)?;
    if status.success() {
        return value.map_err(|source| ToolError::Output { program: words(command), source });
    }
    Err(ToolError::Failed { program: words(command), status, stderr: said(&stderr) })
}
