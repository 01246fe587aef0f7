//! Namespaces held only by threads: they disappear with the process, however it ends.

use std::ffi::OsStr;
use std::fmt;
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
    /// The kernel refused a step.
    #[error("cannot {step}: {source}{}", hint(*step, source.raw_os_error().map(Errno::from_raw)))]
    Refused {
        /// The step.
        step: NetnsStep,
        /// The kernel's error.
        source: io::Error,
    },
    /// The process has several threads, which would stay in the host's namespaces.
    #[error("cannot leave the host's namespaces with {0} threads, only with one")]
    Threads(usize),
}

/// A step of [`unshare_process`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetnsStep {
    /// Reading the number of threads from `/proc`.
    CountThreads,
    /// `unshare(2)`.
    CreateNamespaces,
    /// Mapping the user to root in a new user namespace.
    MapUser,
    /// Making all mounts private, so that later ones do not propagate to the host.
    MakeMountsPrivate,
    /// Mounting a tmpfs at the scratch directory.
    MountScratch,
}

impl fmt::Display for NetnsStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CountThreads => "count the threads in /proc/self/task",
            Self::CreateNamespaces => "create namespaces",
            Self::MapUser => "become root in a user namespace",
            Self::MakeMountsPrivate => "make the mounts private",
            Self::MountScratch => "mount a tmpfs at the directory for temporary files",
        })
    }
}

/// The user's next step after an error; empty if unknown. unshare(2) and mount(2) define the causes.
fn hint(step: NetnsStep, errno: Option<Errno>) -> &'static str {
    use NetnsStep::{CreateNamespaces, MakeMountsPrivate, MapUser, MountScratch};
    match (step, errno) {
        (CreateNamespaces | MapUser, Some(Errno::EPERM | Errno::EACCES)) => {
            "; run as root: user namespaces are not permitted here"
        }
        (CreateNamespaces, Some(Errno::ENOSPC | Errno::EUSERS)) => "; raise /proc/sys/user/max_*_namespaces",
        (CreateNamespaces, Some(Errno::EINVAL | Errno::ENOSYS)) => {
            "; the kernel needs CONFIG_NET_NS, and without root CONFIG_USER_NS"
        }
        // mount(2) changes the propagation of a whole mount, and / is only a directory of one. Bind-mounting / here would
        // propagate to the host, because the mount that contains it is not private yet.
        (MakeMountsPrivate, Some(Errno::EINVAL)) => {
            "; / is not a mount point, as in a chroot: run `mount --bind DIR DIR` on the new root before `chroot DIR`"
        }
        (MakeMountsPrivate | MountScratch, Some(Errno::EPERM | Errno::EACCES)) => "; run as root",
        (MountScratch, Some(Errno::ENOENT | Errno::ENOTDIR)) => "; create the directory",
        (MountScratch, Some(Errno::ENODEV)) => "; the kernel needs CONFIG_TMPFS",
        _ => "",
    }
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
    let threads = refused(NetnsStep::CountThreads, std::fs::read_dir("/proc/self/task"))?.count();
    if threads != 1 {
        return Err(NetnsError::Threads(threads));
    }
    let (uid, gid) = (getuid(), getgid());
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    match unshare(own) {
        Err(Errno::EPERM) => {
            refused(NetnsStep::CreateNamespaces, unshare(own | CloneFlags::CLONE_NEWUSER))?;
            // The kernel requires this order.
            let maps = [
                ("setgroups", "deny".to_owned()),
                ("uid_map", format!("0 {uid} 1")),
                ("gid_map", format!("0 {gid} 1")),
            ];
            for (file, text) in maps {
                refused(NetnsStep::MapUser, std::fs::write(format!("/proc/self/{file}"), text))?;
            }
        }
        result => refused(NetnsStep::CreateNamespaces, result)?,
    }
    let none = None::<&str>;
    // Otherwise the mount below would propagate to the host.
    let private = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    refused(NetnsStep::MakeMountsPrivate, private)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mounted = mount(Some("none"), scratch, Some("tmpfs"), flags, Some("size=4m,mode=0755"));
    refused(NetnsStep::MountScratch, mounted)?;
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

fn refused<T, E: Into<io::Error>>(step: NetnsStep, result: Result<T, E>) -> Result<T, NetnsError> {
    result.map_err(|error| NetnsError::Refused { step, source: error.into() })
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
    #[test]
    fn error_names_the_next_step_for_its_cause() {
        let text = |step, errno| NetnsError::Refused { step, source: io::Error::from(errno) }.to_string();
        let of_mounts = text(NetnsStep::MakeMountsPrivate, Errno::EINVAL);
        assert!(of_mounts.contains("/ is not a mount point") && !of_mounts.contains("run as root"), "{of_mounts}");
        assert!(text(NetnsStep::MakeMountsPrivate, Errno::EPERM).ends_with("; run as root"));
        let of_namespaces = text(NetnsStep::CreateNamespaces, Errno::EPERM);
        assert!(of_namespaces.starts_with("cannot create namespaces: ") && of_namespaces.contains("run as root"));
        assert!(text(NetnsStep::CreateNamespaces, Errno::ENOSPC).contains("max_*_namespaces"));
        assert!(text(NetnsStep::MountScratch, Errno::EIO).ends_with("(os error 5)"), "no hint without a known cause");
    }
}
