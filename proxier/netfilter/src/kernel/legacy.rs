//! What the kernel tells of legacy iptables tables without listing them.

use std::io;
use std::mem::size_of;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::IpFamily;
use crate::iptables::Table;

/// `IPT_SO_GET_INFO`, the same number as `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
const NAME: usize = 32;
const HOOKS: usize = 5;

/// How big a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Its rules, of whatever chain, and some entries for each chain.
    pub entries: u32,
    /// The bytes that these take.
    pub bytes: u32,
}

/// `struct ipt_getinfo`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
    num_entries: u32,
    size: u32,
}

/// How big a table is. The kernel knows without looking at its rules, but asking makes a table that is not there, so only
/// tables that were written before are to be asked for.
///
/// # Errors
/// If the kernel does not tell: it takes the capability `NET_ADMIN`, and a socket.
pub fn table_size(family: IpFamily, table: Table) -> io::Result<TableSize> {
    use std::os::fd::AsRawFd;
    let (domain, level) = match family {
        IpFamily::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        IpFamily::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let mut info = Info::default();
    info.name[..table.name().len()].copy_from_slice(table.name().as_bytes());
    let mut length = libc::socklen_t::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    // SAFETY: `info` is valid for writes of `length` bytes for the whole call, and has no padding; every bit pattern that
    // the kernel may write is a valid `Info`.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length) };
    nix::errno::Errno::result(result)?;
    Ok(TableSize { entries: info.num_entries, bytes: info.size })
}
