//! The limit on open file descriptors, RLIMIT_NOFILE.
//!
//! A process starts with a soft limit of 1024 on most systems, because select(2) cannot name descriptors above it. A
//! program without select(2) may raise it to the hard limit, as Go programs do at their start (Go issue 46279). Programs
//! that we start may use select(2), and get the limit that this process inherited.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// A soft and a hard limit.
type Limits = (rlim_t, rlim_t);

static INHERITED: OnceLock<Limits> = OnceLock::new();

/// Raises the soft limit to the hard one.
///
/// # Errors
/// If the kernel refuses it.
pub fn raise() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        // Kept only where it was changed: programs we start inherit the limit anyway.
        let _ = INHERITED.set((soft, hard));
    }
    Ok(())
}

/// How many descriptors this process may have open; `usize::MAX` if the kernel sets no limit.
#[must_use]
pub fn limit() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// The limits that [`raise`] replaced, if it did.
pub(super) fn inherited() -> Option<Limits> {
    INHERITED.get().copied()
}

/// Sets limits; async-signal-safe, for use between fork(2) and exec(2).
pub(super) fn set((soft, hard): Limits) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
}
