//! Makes single system calls on files fail in a process and its children, by strace's fault injection.
//!
//! Unlike a seccomp filter ([`crate::seccomp`]), strace counts calls and distinguishes files by path.

use std::ffi::OsString;
use std::path::Path;

/// The calls to fail.
#[derive(Clone, Copy, Debug)]
pub struct FailingCalls<'a> {
    /// The names of the system calls.
    pub syscalls: &'a [&'a str],
    /// The name of the errno: `ENOBUFS`.
    pub errno: &'a str,
    /// The calls of each thread in strace's syntax: `3` the third, `3+2` every second one from the third on.
    pub when: &'a str,
    /// The files, by path or by a descriptor of it; empty for all calls.
    pub paths: &'a [&'a str],
}

impl FailingCalls<'_> {
    /// The arguments of strace, which logs each failed call to `log` and follows children.
    fn arguments(&self, log: &Path) -> Vec<OsString> {
        let calls = self.syscalls.join(",");
        let inject = format!("--inject={calls}:error={}:when={}", self.errno, self.when);
        let mut arguments: Vec<OsString> =
            ["-f", "-qqq", &format!("--trace={calls}"), "--signal=none", &inject, "-o"].map(Into::into).into();
        arguments.push(log.into());
        arguments.extend(self.paths.iter().flat_map(|path| ["-P".into(), OsString::from(path)]));
        arguments
    }

    /// The command line to run a program under strace. The spawned process is the program's own.
    #[must_use]
    pub fn wrap(&self, program: &Path, log: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["-D".into()];
        words.extend(self.arguments(log));
        words.extend(["--".into(), program.into()]);
        words
    }
}

/// The number of failed calls in strace's log.
#[must_use]
pub fn failed_calls(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("(INJECTED)").count()
}
