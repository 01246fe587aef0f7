//! Single system calls on files that fail in a process and its children, by strace's fault injection.
//!
//! Unlike a seccomp filter ([`crate::seccomp`]), strace counts calls and tells files apart by their paths.

use std::ffi::OsString;
use std::path::Path;

/// Which calls fail, and how.
#[derive(Clone, Copy, Debug)]
pub struct FailingCalls<'a> {
    /// Names of system calls.
    pub syscalls: &'a [&'a str],
    /// The errno's name: `ENOBUFS`.
    pub errno: &'a str,
    /// Which calls of each thread, in strace's words: `3` the third, `3+2` each second one from the third on.
    pub when: &'a str,
    /// Only calls on these files, by path or by a descriptor of it; all calls if empty.
    pub paths: &'a [&'a str],
}

impl FailingCalls<'_> {
    /// The arguments of strace, which writes each failed call to `log`. Children are traced too.
    fn arguments(&self, log: &Path) -> Vec<OsString> {
        let calls = self.syscalls.join(",");
        let inject = format!("--inject={calls}:error={}:when={}", self.errno, self.when);
        let mut arguments: Vec<OsString> =
            ["-f", "-qqq", &format!("--trace={calls}"), "--signal=none", &inject, "-o"].map(Into::into).into();
        arguments.push(log.into());
        arguments.extend(self.paths.iter().flat_map(|path| ["-P".into(), OsString::from(path)]));
        arguments
    }

    /// Has a command run under strace from its start. The process that is spawned is the command's own.
    #[must_use]
    pub fn wrap(&self, program: &Path, log: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["-D".into()];
        words.extend(self.arguments(log));
        words.extend(["--".into(), program.into()]);
        words
    }
}

/// How many calls failed, by strace's log.
#[must_use]
pub fn failed_calls(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("(INJECTED)").count()
}
