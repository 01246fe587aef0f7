//! The size of legacy iptables tables, read without listing them.

use std::io;
use std::mem::size_of;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::IpFamily;
use crate::iptables::Table;

/// `IPT_SO_GET_INFO`, the same number as `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
const NAME: usize = 32;
const HOOKS: usize = 5;

/// The size of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// The number of entries: rules, and some for each chain.
    pub entries: u32,
    /// The size of the entries in bytes.
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

/// Reads the size of a legacy table.
///
/// The kernel keeps it, so the cost does not depend on the number of rules. A query creates a table that does not
/// exist, so query only tables that exist.
///
/// # Errors
/// If the kernel refuses: the query requires `CAP_NET_ADMIN` and a raw socket.
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
    // SAFETY: `info` is valid for writes of `length` bytes during the call and has no padding; every bit pattern is a
    // valid `Info`.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length) };
    nix::errno::Errno::result(result)?;
    Ok(TableSize { entries: info.num_entries, bytes: info.size })
}
