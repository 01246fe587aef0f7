//! Namespaces held only by threads: they disappear with the process, however it ends.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, gettid, getuid};
use thiserror::Error;

/// A failure to create namespaces.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// Neither root nor user namespaces are available.
    #[error("cannot create namespaces ({0}): run as root, with /proc/sys/user/max_*_namespaces above 0")]
    Refused(Errno),
    /// A user namespace lacks the expected capabilities.
    #[error("{what} failed in the new namespaces ({source}): run as root")]
    Powerless {
        /// The operation that failed.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The process has several threads, which would stay in the host's namespaces.
    #[error("cannot leave the host's namespaces with {0} threads, only with one")]
    Threads(usize),
}

/// Moves this process to new network and mount namespaces.
///
/// The network namespace has no interfaces. In the mount namespace, `scratch` is an empty tmpfs. Without root, a user
/// namespace is created too, in which the user is root. `environment` is set afterwards.
///
/// # Errors
/// If the kernel refuses, or the process has more than one thread.
#[allow(unsafe_code)] // set_var: no other thread can be reading the environment, as is checked
pub fn unshare_process(scratch: &Path, environment: &[(&str, &OsStr)]) -> Result<(), NetnsError> {
    let threads = io_result("counting threads", std::fs::read_dir("/proc/self/task"))?.count();
    if threads != 1 {
        return Err(NetnsError::Threads(threads));
    }
    let (uid, gid) = (getuid(), getgid());
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    match unshare(own) {
        Err(Errno::EPERM) => {
            unshare(own | CloneFlags::CLONE_NEWUSER).map_err(NetnsError::Refused)?;
            // The kernel requires this order.
            let maps = [
                ("setgroups", "deny".to_owned()),
                ("uid_map", format!("0 {uid} 1")),
                ("gid_map", format!("0 {gid} 1")),
            ];
            for (file, text) in maps {
                io_result("becoming root", std::fs::write(format!("/proc/self/{file}"), text))?;
            }
        }
        result => result.map_err(NetnsError::Refused)?,
    }
    let none = None::<&str>;
    // Otherwise the mount below would propagate to the host.
    let private = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    io_result("making mounts private", private.map_err(io::Error::from))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mounted = mount(Some("none"), scratch, Some("tmpfs"), flags, Some("size=4m,mode=0755"));
    io_result(&format!("mounting at {}", scratch.display()), mounted.map_err(io::Error::from))?;
    for (name, value) in environment {
        // SAFETY: this is the only thread.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Moves the calling thread to a new network namespace and returns its thread ID.
///
/// # Errors
/// If the kernel refuses.
pub fn unshare_network() -> io::Result<i32> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(gettid().as_raw())
}

fn io_result<T>(what: &str, result: io::Result<T>) -> Result<T, NetnsError> {
    result.map_err(|source| NetnsError::Powerless { what: what.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unshare_fails_with_several_threads() {
        let thread = std::thread::spawn(|| unshare_process(Path::new("/nowhere"), &[]));
        let error = thread.join().expect("no panic").expect_err("threads");
        assert!(matches!(error, NetnsError::Threads(2..)), "{error}");
    }
}
