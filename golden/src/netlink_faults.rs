//! Single netlink calls that fail in a running process and its tools, by seccomp's user notification.
//!
//! A filter hands each send and receive on a socket to a supervisor, which looks up whether the descriptor is a netlink
//! socket and either has the kernel go on with the call or has it fail with an errno. Unlike a filter that fails by
//! itself ([`crate::seccomp`]) it can count and be switched on and off; unlike strace it can tell sockets apart.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The number that the listener has in the child, until the parent has fetched it: one that no program uses by chance.
const LISTENER: i32 = 777;
/// How often the supervisor looks whether it is to stop, in milliseconds.
const POLL: i32 = 100;
/// The calls by which programs and libraries talk netlink.
const CALLS: [libc::c_long; 4] = [libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_recvfrom, libc::SYS_recvmsg];

/// Which netlink calls fail.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// `libc::E…`
    pub errno: i32,
    /// Only calls on sockets of this protocol (`libc::NETLINK_ROUTE`); `None`: of any.
    pub protocol: Option<i32>,
    /// The first call that fails, counted from 1 over all threads and tools.
    pub first: usize,
    /// The distance from one call that fails to the next; `None`: only the first fails.
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

/// Decides about the netlink calls of a process and its children until it is dropped; from then on they block or fail,
/// so the process must end first.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Spawns a command under supervision. `failing`: which calls fail from the start on.
    ///
    /// # Panics
    /// When the command cannot be started or the kernel has no user notification (before 5.6).
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

    /// Has calls fail from now on, or none.
    pub fn fail(&self, failing: Option<Failing>) {
        *self.shared.failing.lock().unwrap_or_else(PoisonError::into_inner) = failing;
        self.shared.seen.store(0, Ordering::Relaxed);
    }

    /// How many calls have failed so far.
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

/// Has a command install the filter before it begins, and leave the listener open under a known number.
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

/// Takes a copy of the child's listener.
#[allow(unsafe_code, clippy::cast_possible_truncation)] // pidfd_getfd(2) has no wrapper
fn fetch(pid: u32) -> io::Result<OwnedFd> {
    let owned = |fd: libc::c_long| {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, for this caller only.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: both calls take numbers only.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), LISTENER, 0) })
}

/// Answers notifications until it is to stop or no supervised process is left.
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
        // Counted before the answer: the program may end at once.
        let counted = usize::from(errno.is_some());
        shared.failed.fetch_add(counted, Ordering::Relaxed);
        if !answer(listener, call.id, errno) {
            shared.failed.fetch_sub(counted, Ordering::Relaxed);
        }
    }
}

/// With which errno a call is to fail; `None`: the kernel goes on with it.
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

/// The protocol of a netlink socket in a thread's network namespace; `None` if it is no netlink socket.
fn protocol_of(thread: u32, inode: u64) -> Option<i32> {
    let sockets = std::fs::read_to_string(format!("/proc/{thread}/net/netlink")).ok()?;
    let fields = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut own = fields.filter(|fields| fields.last().and_then(|last| last.parse().ok()) == Some(inode));
    own.next()?.get(1)?.parse().ok()
}

/// The events of the listener, 0 if there are none for a while.
#[allow(unsafe_code)] // poll(2)
fn wait(listener: &OwnedFd) -> libc::c_short {
    let mut ready = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the kernel writes to it while it is in the call.
    unsafe { libc::poll(&raw mut ready, 1, POLL) };
    ready.revents
}

#[allow(unsafe_code)] // an ioctl without a wrapper
fn receive(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    // SAFETY: zeros are a valid value, and the kernel demands them; it writes to it while it is in the call.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let status = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    // It fails if the caller was killed meanwhile.
    (status == 0).then_some(call)
}

/// Whether the caller was still there to be answered.
#[allow(unsafe_code, clippy::cast_possible_truncation)] // an ioctl without a wrapper
fn answer(listener: &OwnedFd, id: u64, errno: Option<i32>) -> bool {
    let flags = if errno.is_some() { 0 } else { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 };
    let response = libc::seccomp_notif_resp { id, val: 0, error: -errno.unwrap_or_default(), flags };
    // SAFETY: the kernel reads it while it is in the call.
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
        let failing = Failing { errno: libc::ENOBUFS, protocol: Some(libc::NETLINK_ROUTE), first: 1, step: None };
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
        assert_eq!(spawn(Some(failing)), (false, 1));
        let other = Failing { protocol: Some(libc::NETLINK_NETFILTER), ..failing };
        assert_eq!(spawn(Some(other)), (true, 0));
    }
}
