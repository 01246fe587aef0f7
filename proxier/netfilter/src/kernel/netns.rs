//! Namespaces that nothing holds but threads: they vanish with the process, however it ends.
//!
//! In: the wish to leave the host. Out: a process, and threads, in namespaces of their own.
//! Must not know: what happens in them. Only `kube-proxy demo` wants this.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, gettid, getuid};
use thiserror::Error;

/// Why the host could not be left.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// Neither root nor user namespaces.
    #[error("namespaces cannot be made here ({0}): run this as root, where /proc/sys/user/max_*_namespaces allow them")]
    Refused(Errno),
    /// A user namespace without the rights that it should have.
    #[error("a user namespace was made, but {what} is not allowed in it ({source}): run this as root")]
    Powerless {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Too late: other threads would stay on the host.
    #[error("the host can be left only while there is one thread, not {0}")]
    Threads(usize),
}

/// Takes this process off the host: a network namespace without interfaces; a mount namespace where `scratch` is an
/// empty file system in memory; without root also a user namespace, in which the user is root.
///
/// # Errors
/// If the kernel does not allow it, or there is more than one thread.
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
            // The kernel wants it in this order.
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
    // Or the host would get the mount below too.
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

/// Moves the calling thread to a network namespace of its own. Returns the thread's id, by which others can name it.
///
/// # Errors
/// If the kernel does not allow it.
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
    fn the_host_is_not_left_while_other_threads_would_stay() {
        let thread = std::thread::spawn(|| unshare_process(Path::new("/nowhere"), &[]));
        let error = thread.join().expect("no panic").expect_err("threads");
        assert!(matches!(error, NetnsError::Threads(2..)), "{error}");
    }
}
