//! The limit on open file descriptors (`RLIMIT_NOFILE`).
//!
//! Most systems start a process with a soft limit of 1024, because select(2) cannot name higher descriptors. A program
//! without select(2) may raise the limit to the hard one, as Go programs do at start (Go issue 46279). Programs
//! started by this crate may use select(2), so they get the inherited limit.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// A soft and a hard limit.
type Limits = (rlim_t, rlim_t);

static INHERITED: OnceLock<Limits> = OnceLock::new();

/// Raises the soft limit to the hard limit.
///
/// # Errors
/// If the kernel refuses.
pub fn raise() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        // Stored only if changed: child processes inherit the limit anyway.
        let _ = INHERITED.set((soft, hard));
    }
    Ok(())
}

/// The number of descriptors that this process may open; `usize::MAX` without a limit.
#[must_use]
pub fn limit() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// The limits that [`raise`] replaced; `None` if it changed nothing.
pub(super) fn inherited() -> Option<Limits> {
    INHERITED.get().copied()
}

/// Sets the limits. Async-signal-safe, for use between fork(2) and exec(2).
pub(super) fn set((soft, hard): Limits) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
}
