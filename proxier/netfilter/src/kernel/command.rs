//! Runs programs with a deadline, and kills them with their children.

use std::cell::Cell;
use std::io::{BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use thiserror::Error;

use super::descriptors;
use super::writer_priority::Preemption;

/// The deadline for a program. iptables-legacy needs some seconds for 10,000 Services.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The deadline in milliseconds that [`set_timeout`] set; 0: [`TIMEOUT`].
static SHORTER_TIMEOUT: AtomicU64 = AtomicU64::new(0);
/// The deadline once a program has hung, where a person waits: what held it up holds up others too.
const AFTER_HANG: Duration = Duration::from_millis(500);

/// Sets the deadline for programs in this process, where a person waits for the answer.
pub fn set_timeout(timeout: Duration) {
    SHORTER_TIMEOUT.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn timeout() -> Duration {
    match SHORTER_TIMEOUT.load(Ordering::Relaxed) {
        0 => TIMEOUT,
        timeout => Duration::from_millis(timeout),
    }
}

/// The interval at which preemption is checked while a program runs.
const PREEMPTION_POLL: Duration = Duration::from_millis(10);

thread_local! {
    static CHILDREN_TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A program that could not be started, or that failed.
#[derive(Debug, Error)]
pub enum ToolError {
    /// The program does not exist or is not executable.
    #[error("cannot run {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The program exited with an error.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program and its arguments.
        program: String,
        /// The exit status.
        status: ExitStatus,
        /// Its standard error output.
        stderr: String,
    },
    /// The program exceeded the deadline.
    #[error(
        "{program} timed out after {timeout:?} and was killed; look for hanging programs on this node, such as modprobe"
    )]
    Timeout {
        /// The program and its arguments.
        program: String,
        /// The deadline.
        timeout: Duration,
    },
    /// The program was killed because a foreground writer needs the lock that it holds.
    #[error("{program} was preempted by a foreground writer")]
    Preempted {
        /// The program and its arguments.
        program: String,
    },
    /// The program's output could not be read or parsed.
    #[error("{program}: {source}")]
    Output {
        /// The program.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl ToolError {
    /// Whether the program does not exist, which a retry does not change.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

/// The command line, for messages.
fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Standard error output in one line, without the hint to read the manual.
pub(super) fn stderr_line(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    lines.collect::<Vec<_>>().join(" ")
}

/// Starts a command as the leader of a process group of its own.
///
/// Killing the group kills the program's children as well. The kernel kills the program when this process ends, by
/// whatever signal (`PR_SET_PDEATHSIG`): a surviving tool would write rules beside the next instance.
#[allow(unsafe_code)]
fn start(command: &mut Command) -> Result<Child, ToolError> {
    let (parent, limits) = (nix::unistd::getpid(), descriptors::inherited());
    let prepare = move || {
        limits.map_or(Ok(()), descriptors::set)?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before the signal was set.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::Error::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called; these are plain system calls.
    unsafe { command.pre_exec(prepare) };
    command.process_group(0).spawn().map_err(|source| ToolError::Start { program: command_line(command), source })
}

/// Waits for a child and adds its CPU time to the calling thread's total.
#[allow(unsafe_code)]
fn reap(child: &Child) -> std::io::Result<ExitStatus> {
    let pid = libc::pid_t::try_from(child.id()).map_err(std::io::Error::other)?;
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the kernel writes to both only during the call, and a zeroed rusage is valid.
    while unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) } != pid {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: initialized above.
    let usage = unsafe { usage.assume_init() };
    let of = |time: libc::timeval| {
        let (seconds, micros) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec));
        Duration::from_secs(seconds.unwrap_or_default()) + Duration::from_micros(micros.unwrap_or_default())
    };
    CHILDREN_TIME.set(CHILDREN_TIME.get() + of(usage.ru_utime) + of(usage.ru_stime));
    Ok(ExitStatus::from_raw(status))
}

/// The CPU time of the programs that this thread has run.
///
/// `RUSAGE_CHILDREN` sums over all threads and would charge one thread for the programs of another.
pub(super) fn children_time() -> Duration {
    CHILDREN_TIME.get()
}

/// Runs `work` with a child and waits for the child's end.
///
/// At the deadline the child is killed, which ends `work` too.
fn run_until_timeout<T>(
    timeout: Duration,
    command: &Command,
    mut child: Child,
    preemption: Option<&Preemption>,
    work: impl FnOnce(&mut Child) -> T,
) -> Result<(ExitStatus, T), ToolError> {
    let output = |source| ToolError::Output { program: command_line(command), source };
    let group = i32::try_from(child.id()).map(Pid::from_raw).map_err(|e| output(std::io::Error::other(e)))?;
    let (done, is_done) = channel::<()>();
    let (value, killed) = std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let end = Instant::now() + timeout;
            let pause = |left: Duration| if preemption.is_some() { left.min(PREEMPTION_POLL) } else { left };
            let error = loop {
                let left = end.saturating_duration_since(Instant::now());
                if is_done.recv_timeout(pause(left)) != Err(RecvTimeoutError::Timeout) {
                    return None;
                }
                if left.is_zero() {
                    if SHORTER_TIMEOUT.load(Ordering::Relaxed) != 0 {
                        set_timeout(AFTER_HANG.min(timeout));
                    }
                    break ToolError::Timeout { program: command_line(command), timeout };
                }
                if preemption.is_some_and(Preemption::is_wanted) {
                    break ToolError::Preempted { program: command_line(command) };
                }
            };
            // The child has not been reaped, so its process ID is still valid.
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

/// Runs a command with `input` on its standard input and returns its output.
///
/// # Errors
/// If the command cannot be started, exceeds the deadline, or fails.
pub(super) fn run<'a>(
    command: &mut Command,
    input: impl IntoIterator<Item = &'a str, IntoIter: Send>,
) -> Result<Vec<u8>, ToolError> {
    run_within(timeout(), command, None, input)
}

/// As [`run`], but kills the program as soon as `preemption` requests it.
///
/// # Errors
/// As [`run`], and [`ToolError::Preempted`].
pub(super) fn run_preemptible<'a>(
    command: &mut Command,
    preemption: &Preemption,
    input: impl IntoIterator<Item = &'a str, IntoIter: Send>,
) -> Result<Vec<u8>, ToolError> {
    run_within(TIMEOUT, command, Some(preemption), input)
}

fn run_within<'a>(
    timeout: Duration,
    command: &mut Command,
    preemption: Option<&Preemption>,
    input: impl IntoIterator<Item = &'a str, IntoIter: Send>,
) -> Result<Vec<u8>, ToolError> {
    let child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let pieces = input.into_iter();
    let (status, (stdout, stderr)) = run_until_timeout(timeout, command, child, preemption, |child| {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            // Standard error is read concurrently: a program may fill that pipe before it has read its input.
            scope.spawn(move || {
                let mut pieces = pieces;
                // A program that ends before it has read all input reports the reason otherwise.
                stdin.map(|mut stdin| pieces.try_for_each(|piece| stdin.write_all(piece.as_bytes())))
            });
            let stderr = scope.spawn(move || all(stderr));
            (all(stdout), stderr.join().unwrap_or_else(|_| Ok(Vec::new())))
        })
    })?;
    if status.success() {
        return stdout.map_err(|source| ToolError::Output { program: command_line(command), source });
    }
    let stderr = stderr_line(&String::from_utf8_lossy(&stderr.unwrap_or_default()));
    Err(ToolError::Failed { program: command_line(command), status, stderr })
}

fn all(pipe: Option<impl Read>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// Runs a command and passes its output to `read` as a stream.
///
/// # Errors
/// If the command cannot be started, exceeds the deadline, or fails, or if `read` fails.
pub(super) fn stream<T>(
    command: &mut Command,
    read: impl FnOnce(BufReader<ChildStdout>) -> std::io::Result<T>,
) -> Result<T, ToolError> {
    let child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (status, (value, stderr)) = run_until_timeout(timeout(), command, child, None, |child| {
        let value = match child.stdout.take() {
            Some(stdout) => read(BufReader::with_capacity(1 << 16, stdout)),
            None => Err(std::io::Error::other("no output")),
        };
        (value, all(child.stderr.take()))
    })?;
    if status.success() {
        return value.map_err(|source| ToolError::Output { program: command_line(command), source });
    }
    let stderr = stderr_line(&String::from_utf8_lossy(&stderr.unwrap_or_default()));
    Err(ToolError::Failed { program: command_line(command), status, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(timeout: Duration, script: &str, input: &str) -> Result<Vec<u8>, ToolError> {
        run_within(timeout, Command::new("sh").args(["-c", script]), None, [input])
    }

    #[test]
    fn hanging_program_is_killed_with_its_children() {
        // Ignores SIGTERM, and a child keeps the pipes open.
        for script in ["trap '' TERM; sleep 1000", "sleep 1000 & sleep 1000", "exec >&- 2>&-; sleep 1000"] {
            // More than the pipe holds, and the program does not read it.
            let error = shell(Duration::from_millis(200), script, &"x".repeat(1 << 20)).expect_err("it hangs");
            assert!(matches!(error, ToolError::Timeout { .. }), "{error}");
            assert!(error.to_string().contains(script) && error.to_string().contains("200ms"), "{error}");
        }
    }

    #[test]
    fn cpu_time_of_a_program_is_charged_to_the_thread_that_ran_it() {
        let burn = || {
            shell(TIMEOUT, "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done", "").expect("it ends");
            children_time()
        };
        let before = children_time();
        let other = std::thread::spawn(burn).join().expect("no panic");
        assert!(other >= Duration::from_millis(5), "{other:?}");
        assert_eq!(children_time(), before, "another thread's program");
        assert!(burn() > before);
    }

    #[test]
    fn input_output_and_stderr_are_passed_through() {
        let echoed = shell(TIMEOUT, "yes complaint | head -c 300000 >&2; cat", "hello").expect("an echo");
        assert_eq!(echoed, b"hello");
        let error = shell(TIMEOUT, "echo out; echo '  bad thing' >&2; exit 3", "").expect_err("it fails");
        let ToolError::Failed { status, stderr, .. } = &error else { panic!("{error}") };
        assert_eq!((status.code(), stderr.as_str()), (Some(3), "bad thing"));
    }
}
