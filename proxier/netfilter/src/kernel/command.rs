//! Running the system's programs.
//!
//! In: a command, perhaps input. Out: its output, or an error in its own words. Must not know: what programs mean.

use std::cell::Cell;
use std::io::{BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use thiserror::Error;

use super::descriptors;
use super::writer_priority::Preemption;

/// How long a program may run. Nothing that works takes this long: 10,000 Services take iptables-legacy some seconds.
const LIMIT: Duration = Duration::from_secs(300);

/// How often a program that may be preempted is looked after.
const PREEMPTION_POLL: Duration = Duration::from_millis(10);

thread_local! {
    static CHILDREN_TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

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
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// It did not end.
    #[error(
        "{program} did not end within {limit:?} and was killed; does something hang on this node, modprobe perhaps?"
    )]
    Late {
        /// The program and its arguments.
        program: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It was killed because something more urgent needs what it holds.
    #[error("{program} was ended early")]
    Preempted {
        /// The program and its arguments.
        program: String,
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

impl ToolError {
    /// Whether the program is not there: trying again does not help.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
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
pub(super) fn said(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    lines.collect::<Vec<_>>().join(" ")
}

/// Starts a command as the head of a group of its own, so that what it starts can be killed with it, and has the kernel
/// kill it when this process ends, by whatever signal: a tool that goes on would write rules beside the next proxy.
#[allow(unsafe_code)]
fn start(command: &mut Command) -> Result<Child, ToolError> {
    let (parent, limits) = (nix::unistd::getpid(), descriptors::inherited());
    let prepare = move || {
        limits.map_or(Ok(()), descriptors::set)?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before the signal was asked for.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::Error::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called: these are plain system calls.
    unsafe { command.pre_exec(prepare) };
    command.process_group(0).spawn().map_err(|source| ToolError::Start { program: words(command), source })
}

/// Waits for a child and adds its CPU time to that of this thread's programs.
#[allow(unsafe_code)]
fn reap(child: &Child) -> std::io::Result<ExitStatus> {
    let pid = libc::pid_t::try_from(child.id()).map_err(std::io::Error::other)?;
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the kernel writes to both while it is in the call, and every rusage of zeros is a valid one.
    while unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) } != pid {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: it is initialized, see above.
    let usage = unsafe { usage.assume_init() };
    let of = |time: libc::timeval| {
        let (seconds, micros) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec));
        Duration::from_secs(seconds.unwrap_or_default()) + Duration::from_micros(micros.unwrap_or_default())
    };
    CHILDREN_TIME.set(CHILDREN_TIME.get() + of(usage.ru_utime) + of(usage.ru_stime));
    Ok(ExitStatus::from_raw(status))
}

/// The CPU time of the programs that this thread has run to their end. The kernel's own sum (RUSAGE_CHILDREN) is one for
/// all threads, and would charge a family for the programs of the other.
pub(super) fn children_time() -> Duration {
    CHILDREN_TIME.get()
}

/// Does `work` with a child and waits for its end. From the limit on the child does not live, so that the work ends too.
fn within<T>(
    limit: Duration,
    command: &Command,
    mut child: Child,
    preemption: Option<&Preemption>,
    work: impl FnOnce(&mut Child) -> T,
) -> Result<(ExitStatus, T), ToolError> {
    let output = |source| ToolError::Output { program: words(command), source };
    let group = i32::try_from(child.id()).map(Pid::from_raw).map_err(|e| output(std::io::Error::other(e)))?;
    let (done, is_done) = channel::<()>();
    let (value, killed) = std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let end = Instant::now() + limit;
            let pause = |left: Duration| if preemption.is_some() { left.min(PREEMPTION_POLL) } else { left };
            let error = loop {
                let left = end.saturating_duration_since(Instant::now());
                if is_done.recv_timeout(pause(left)) != Err(RecvTimeoutError::Timeout) {
                    return None;
                }
                if left.is_zero() {
                    break ToolError::Late { program: words(command), limit };
                }
                if preemption.is_some_and(Preemption::is_wanted) {
                    break ToolError::Preempted { program: words(command) };
                }
            };
            // Nobody has reaped the child yet, so the number is still its own.
            killpg(group, Signal::SIGKILL).is_ok().then_some(error)
        });
        let value = work(&mut child);
        while waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
        drop(done);
        (value, watch.join().unwrap_or(None))
    });
    let status = reap(&child).map_err(output)?;
    killed.map_or(Ok((status, value)), Err)
}

/// Runs a command to its end, with the pieces of `input` on its standard input, and returns its output.
///
/// # Errors
/// If it cannot be run, does not end, or ends with an error.
pub(super) fn run<'a>(
    command: &mut Command,
    input: impl IntoIterator<Item = &'a str, IntoIter: Send>,
) -> Result<Vec<u8>, ToolError> {
    run_within(LIMIT, command, None, input)
}

/// The same, but kills the program as soon as `preemption` asks for it.
///
/// # Errors
/// Those of [`run`], and [`ToolError::Preempted`].
pub(super) fn run_preemptible<'a>(
    command: &mut Command,
    preemption: &Preemption,
    input: impl IntoIterator<Item = &'a str, IntoIter: Send>,
) -> Result<Vec<u8>, ToolError> {
    run_within(LIMIT, command, Some(preemption), input)
}

fn run_within<'a>(
    limit: Duration,
    command: &mut Command,
    preemption: Option<&Preemption>,
    input: impl IntoIterator<Item = &'a str, IntoIter: Send>,
) -> Result<Vec<u8>, ToolError> {
    let child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let pieces = input.into_iter();
    let (status, (stdout, stderr)) = within(limit, command, child, preemption, |child| {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            // A program may complain at length before it has read everything: somebody has to listen meanwhile.
            scope.spawn(move || {
                let mut pieces = pieces;
                // One that ends before it has read everything says why by other means.
                stdin.map(|mut stdin| pieces.try_for_each(|piece| stdin.write_all(piece.as_bytes())))
            });
            let stderr = scope.spawn(move || all(stderr));
            (all(stdout), stderr.join().unwrap_or_else(|_| Ok(Vec::new())))
        })
    })?;
    if status.success() {
        return stdout.map_err(|source| ToolError::Output { program: words(command), source });
    }
    let stderr = said(&String::from_utf8_lossy(&stderr.unwrap_or_default()));
    Err(ToolError::Failed { program: words(command), status, stderr })
}

fn all(pipe: Option<impl Read>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// Runs a command and hands its output to `read` as it comes.
///
/// # Errors
/// If it cannot be run, does not end, or ends with an error, or `read` does.
pub(super) fn stream<T>(
    command: &mut Command,
    read: impl FnOnce(BufReader<ChildStdout>) -> std::io::Result<T>,
) -> Result<T, ToolError> {
    let child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (status, (value, stderr)) = within(LIMIT, command, child, None, |child| {
        let value = match child.stdout.take() {
            Some(stdout) => read(BufReader::with_capacity(1 << 16, stdout)),
            None => Err(std::io::Error::other("no output")),
        };
        (value, all(child.stderr.take()))
    })?;
    if status.success() {
        return value.map_err(|source| ToolError::Output { program: words(command), source });
    }
    let stderr = said(&String::from_utf8_lossy(&stderr.unwrap_or_default()));
    Err(ToolError::Failed { program: words(command), status, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(limit: Duration, script: &str, input: &str) -> Result<Vec<u8>, ToolError> {
        run_within(limit, Command::new("sh").args(["-c", script]), None, [input])
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_all_it_started() {
        // Deaf to SIGTERM, and its child holds the pipes open.
        for script in ["trap '' TERM; sleep 1000", "sleep 1000 & sleep 1000", "exec >&- 2>&-; sleep 1000"] {
            // More than a pipe holds, and nobody reads it.
            let error = shell(Duration::from_millis(200), script, &"x".repeat(1 << 20)).expect_err("it hangs");
            assert!(matches!(error, ToolError::Late { .. }), "{error}");
            assert!(error.to_string().contains(script) && error.to_string().contains("200ms"), "{error}");
        }
    }

    #[test]
    fn cpu_time_of_a_program_is_charged_to_the_thread_that_ran_it_alone() {
        let burn = || {
            shell(LIMIT, "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done", "").expect("it ends");
            children_time()
        };
        let before = children_time();
        let other = std::thread::spawn(burn).join().expect("no panic");
        assert!(other >= Duration::from_millis(5), "{other:?}");
        assert_eq!(children_time(), before, "another thread's program");
        assert!(burn() > before);
    }

    #[test]
    fn output_input_and_complaints_go_where_they_should() {
        let echoed = shell(LIMIT, "yes complaint | head -c 300000 >&2; cat", "hello").expect("an echo");
        assert_eq!(echoed, b"hello");
        let error = shell(LIMIT, "echo out; echo '  bad thing' >&2; exit 3", "").expect_err("it fails");
        let ToolError::Failed { status, stderr, .. } = &error else { panic!("{error}") };
        assert_eq!((status.code(), stderr.as_str()), (Some(3), "bad thing"));
    }
}
