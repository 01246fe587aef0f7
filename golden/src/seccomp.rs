//! Makes system calls of a child process fail with the kernel's own error, by a seccomp filter.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// A system call number and the errno with which it fails.
#[derive(Clone, Copy, Debug)]
pub struct Denied {
    /// `libc::SYS_…`
    pub syscall: libc::c_long,
    /// `libc::E…`
    pub errno: i32,
    /// The first argument of failing calls; `None` for any.
    pub first_argument: Option<u32>,
}

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Makes these system calls fail in a command and all its children.
#[allow(unsafe_code, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // pre_exec: only prctl(2) is called
pub fn deny(command: &mut Command, denied: &[Denied]) {
    let load = |offset: usize| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
    // Continues if the loaded value is k, otherwise skips that many statements.
    let equals =
        |k: u32, skip: u8| libc::sock_filter { jf: skip, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) };
    let mut program = Vec::new();
    for Denied { syscall, errno, first_argument } in denied {
        program.push(load(std::mem::offset_of!(libc::seccomp_data, nr)));
        program.push(equals(*syscall as u32, if first_argument.is_some() { 3 } else { 1 }));
        if let Some(argument) = first_argument {
            // The lower half, on little-endian machines.
            program.push(load(std::mem::offset_of!(libc::seccomp_data, args)));
            program.push(equals(*argument, 1));
        }
        program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | *errno as u32));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    // SAFETY: prctl(2) is async-signal-safe, and the program lives in the closure.
    unsafe {
        command.pre_exec(move || {
            let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
            let installed = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0;
            if installed { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}
