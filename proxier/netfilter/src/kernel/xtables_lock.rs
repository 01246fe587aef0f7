//! The lock that the legacy iptables programs hold while they change a table.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock file unless `XTABLES_LOCKFILE` names another, as for the programs.
const LOCK_FILE: &str = "/run/xtables.lock";
/// The pause between attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock, which ends with the returned value; waits for it at most for `patience`.
///
/// iptables-legacy-restore replaces a whole table, with counters of zero, and adds the old counters afterwards. Under the
/// lock no reader sees a table in between. Programs before 1.6.2 do not take it.
///
/// # Errors
/// `WouldBlock` if another program has it all the time; if the file cannot be opened.
pub(super) fn lock(patience: Duration) -> io::Result<Flock<File>> {
    let path = std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| PathBuf::from(LOCK_FILE), PathBuf::from);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, Errno::EWOULDBLOCK)) if begun.elapsed() < patience => file = unlocked,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another program holds the xtables lock"));
            }
            Err((_, error)) => return Err(error.into()),
        }
        sleep(PAUSE);
    }
}
