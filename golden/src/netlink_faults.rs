//! Makes single netlink calls of a process and its tools fail, by seccomp user notification.
//!
//! A filter passes each send and receive on a socket to a supervisor, which checks whether it is a netlink socket and
//! either continues the call or fails it with an errno. Unlike a plain filter ([`crate::seccomp`]) it counts calls and
//! can be switched on and off; unlike strace it distinguishes sockets.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The descriptor of the listener in the child, until the parent has fetched it. No program uses it by chance.
const LISTENER: i32 = 777;
/// The interval in milliseconds at which the supervisor checks whether to stop.
const POLL: i32 = 100;
/// The system calls that send and receive netlink messages.
const CALLS: [libc::c_long; 4] = [libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_recvfrom, libc::SYS_recvmsg];

/// The netlink calls to fail.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// `libc::E…`
    pub errno: i32,
    /// The protocol of the socket (`libc::NETLINK_ROUTE`); `None` for any.
    pub protocol: Option<i32>,
    /// The first call to fail, counted from 1 over all threads and tools.
    pub first: usize,
    /// The distance between failing calls; `None` to fail only the first.
    pub step: Option<usize>,
}

impl Failing {
    fn is_hit(&self, call: usize) -> bool {
        match self.step {
            None => call == self.first,
            Some(step) => call >= self.first && (call - self.first).is_multiple_of(step),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    failing: Mutex<Option<Failing>>,
    seen: AtomicUsize,
    failed: AtomicUsize,
    stop: AtomicBool,
}

/// Decides netlink calls of a process and its children until dropped.
///
/// Afterwards their calls block or fail, so the process must exit first.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Spawns a command under supervision, with calls that fail from the start.
    ///
    /// # Panics
    /// If the command cannot be started, or the kernel has no user notification (before 5.6).
    #[must_use]
    pub fn spawn(mut command: Command, failing: Option<Failing>) -> (Child, Self) {
        install(&mut command);
        let child = command.spawn().expect("the command starts");
        let listener = fetch(child.id()).expect("the filter's listener");
        let shared = Arc::new(Shared { failing: Mutex::new(failing), ..Shared::default() });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || supervise(&listener, &of_thread));
        (child, Self { shared, thread: Some(thread) })
    }

    /// Sets the calls that fail from now on.
    pub fn fail(&self, failing: Option<Failing>) {
        *self.shared.failing.lock().unwrap_or_else(PoisonError::into_inner) = failing;
        self.shared.seen.store(0, Ordering::Relaxed);
    }

    /// The number of failed calls.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.shared.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes a command install the filter before it runs, and keep the listener open at [`LISTENER`].
#[allow(unsafe_code, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // pre_exec: only system calls
fn install(command: &mut Command) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number)];
    for call in CALLS {
        let jump = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32);
        program.push(libc::sock_filter { jf: 1, ..jump });
        program.push(statement(libc::BPF_RET, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW));
    // SAFETY: prctl(2), seccomp(2), dup2(2) and close(2) are async-signal-safe, and the program lives in the closure.
    unsafe {
        command.pre_exec(move || {
            let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
            let listener = libc::syscall(libc::SYS_seccomp, operation, flags, &raw const filter) as i32;
            if listener < 0 || libc::dup2(listener, LISTENER) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::close(listener);
            Ok(())
        });
    }
}

/// Duplicates the child's listener.
#[allow(unsafe_code, clippy::cast_possible_truncation)] // pidfd_getfd(2) has no wrapper
fn fetch(pid: u32) -> io::Result<OwnedFd> {
    let owned = |fd: libc::c_long| {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned it, to this caller only.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: both calls take numbers only.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), LISTENER, 0) })
}

/// Answers notifications until stopped, or until no supervised process is left.
fn supervise(listener: &OwnedFd, shared: &Shared) {
    let mut protocols = HashMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match wait(listener) {
            0 => continue,
            events if events & libc::POLLIN != 0 => {}
            // No supervised process is left.
            _ => return,
        }
        let Some(call) = receive(listener) else { continue };
        let errno = decide(&call, shared, &mut protocols);
        // Counted before the answer, because the program may exit at once.
        let counted = usize::from(errno.is_some());
        shared.failed.fetch_add(counted, Ordering::Relaxed);
        if !answer(listener, call.id, errno) {
            shared.failed.fetch_sub(counted, Ordering::Relaxed);
        }
    }
}

/// The errno for a call; `None` to continue it.
fn decide(call: &libc::seccomp_notif, shared: &Shared, protocols: &mut HashMap<u64, Option<i32>>) -> Option<i32> {
    let failing = (*shared.failing.lock().unwrap_or_else(PoisonError::into_inner))?;
    let (thread, descriptor) = (call.pid, call.data.args[0]);
    let link = std::fs::read_link(format!("/proc/{thread}/fd/{descriptor}")).ok()?;
    let inode: u64 = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
    let protocol = (*protocols.entry(inode).or_insert_with(|| protocol_of(thread, inode)))?;
    if failing.protocol.is_some_and(|only| only != protocol) {
        return None;
    }
    let nth = shared.seen.fetch_add(1, Ordering::Relaxed) + 1;
    failing.is_hit(nth).then_some(failing.errno)
}

/// The protocol of a netlink socket in a thread's network namespace; `None` for other sockets.
fn protocol_of(thread: u32, inode: u64) -> Option<i32> {
    let sockets = std::fs::read_to_string(format!("/proc/{thread}/net/netlink")).ok()?;
    let fields = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut own = fields.filter(|fields| fields.last().and_then(|last| last.parse().ok()) == Some(inode));
    own.next()?.get(1)?.parse().ok()
}

/// The events of the listener; 0 at the timeout.
#[allow(unsafe_code)] // poll(2)
fn wait(listener: &OwnedFd) -> libc::c_short {
    let mut ready = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the kernel writes to it only during the call.
    unsafe { libc::poll(&raw mut ready, 1, POLL) };
    ready.revents
}

#[allow(unsafe_code)] // an ioctl without a wrapper
fn receive(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    // SAFETY: zeros are valid and required by the kernel, which writes to it only during the call.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let status = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    // It fails if the caller was killed meanwhile.
    (status == 0).then_some(call)
}

/// Whether the caller was still waiting.
#[allow(unsafe_code, clippy::cast_possible_truncation)] // an ioctl without a wrapper
fn answer(listener: &OwnedFd, id: u64, errno: Option<i32>) -> bool {
    let flags = if errno.is_some() { 0 } else { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 };
    let response = libc::seccomp_notif_resp { id, val: 0, error: -errno.unwrap_or_default(), flags };
    // SAFETY: the kernel reads it only during the call.
    let status = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    status == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_hit_once_or_again_and_again() {
        let failing = |first, step| Failing { errno: libc::ENOMEM, protocol: None, first, step };
        let hits = |failing: Failing| (1..=10).filter(|call| failing.is_hit(*call)).collect::<Vec<_>>();
        assert_eq!(hits(failing(3, None)), [3]);
        assert_eq!(hits(failing(2, Some(4))), [2, 6, 10]);
    }

    #[test]
    fn netlink_calls_of_a_program_fail_and_others_do_not() {
        let failing = Failing { errno: libc::ENOBUFS, protocol: Some(libc::NETLINK_ROUTE), first: 1, step: Some(1) };
        let spawn = |failing| {
            let mut command = Command::new("ip");
            command
                .args(["link", "show", "lo"])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            let (mut child, supervisor) = Supervisor::spawn(command, failing);
            (child.wait().expect("a child").success(), supervisor.failed())
        };
        assert_eq!(spawn(None), (true, 0));
        let (succeeded, failed) = spawn(Some(failing));
        assert!(!succeeded && failed > 0, "{failed} calls failed");
        // Newer releases of `ip` do without the first answer.
        assert_eq!(spawn(Some(Failing { step: None, ..failing })).1, 1);
        let other = Failing { protocol: Some(libc::NETLINK_NETFILTER), ..failing };
        assert_eq!(spawn(Some(other)), (true, 0));
    }
}
