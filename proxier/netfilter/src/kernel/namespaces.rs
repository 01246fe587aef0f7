//! Network namespaces on this machine: which processes hold them, and reads inside of them.
//!
//! Nothing is changed: a thread of its own enters them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, setns};

use super::neighbour::address;
use super::netlink::{Netlink, Request};

/// What [`interceptors`] calls tables of iptables or nf_tables.
pub const FILTER_RULES: &str = "packet filter rules";

const OWN: &str = "/proc/thread-self/ns/net";
/// Where CRI runtimes and `ip netns` keep namespaces by name.
const NAMED: &str = "/run/netns";

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETNSID: u16 = 90;
/// The sizes of `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtgenmsg` with its padding.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTGENMSG: usize = 4;
const IFLA_LINK_NETNSID: u16 = 37;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// A network namespace other than the calling thread's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNamespace {
    /// The processes in it that are visible, the oldest first.
    pub processes: Vec<u32>,
    path: PathBuf,
}

/// The network namespaces that are visible from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VisibleNamespaces {
    /// Those other than the calling thread's.
    pub others: Vec<NetworkNamespace>,
    /// The number of processes whose namespaces may not be read, which takes root.
    pub refused: usize,
}

/// The addresses in a namespace, and how it hangs on the node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceAddresses {
    /// Addresses with the index of their interface; those of loopback are left out.
    pub addresses: Vec<(u32, IpAddr)>,
    /// Whether one of its interfaces hangs on the node's namespace: the other end of a veth pair, a macvlan.
    pub is_attached: bool,
}

/// What was read in namespaces.
#[derive(Debug)]
pub struct NamespaceReads<T> {
    /// Results by the index of the namespace.
    pub found: Vec<(usize, T)>,
    /// Why a namespace could not be read: the first reason.
    pub failed: Option<io::Error>,
    /// Whether the deadline came before the last one.
    pub timed_out: bool,
}

impl VisibleNamespaces {
    /// Lists them: those of processes, and those with names.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn list() -> io::Result<Self> {
        let own = std::fs::metadata(OWN)?.ino();
        let (mut known, mut refused): (BTreeMap<u64, NetworkNamespace>, usize) = (BTreeMap::new(), 0);
        let mut processes: Vec<u32> = std::fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        processes.sort_unstable();
        for pid in processes {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            match std::fs::metadata(&path) {
                Ok(found) if found.ino() == own => {}
                Ok(found) => {
                    let new = || NetworkNamespace { processes: Vec::new(), path };
                    known.entry(found.ino()).or_insert_with(new).processes.push(pid);
                }
                Err(error) => refused += usize::from(error.kind() == io::ErrorKind::PermissionDenied),
            }
        }
        for entry in std::fs::read_dir(NAMED).into_iter().flatten().flatten() {
            let Ok(found) = std::fs::metadata(entry.path()) else { continue };
            if found.ino() != own {
                let new = || NetworkNamespace { processes: Vec::new(), path: entry.path() };
                known.entry(found.ino()).or_insert_with(new);
            }
        }
        Ok(Self { others: known.into_values().collect(), refused })
    }
}

/// Reads in namespaces, one after the other, until the deadline. `look` returns `None` for those of no interest.
///
/// # Errors
/// If the calling thread's namespace cannot be opened, or the reading panics.
pub fn read_in_namespaces<T: Send>(
    namespaces: &[&NetworkNamespace],
    until: Instant,
    look: impl Fn(&File) -> io::Result<Option<T>> + Sync,
) -> io::Result<NamespaceReads<T>> {
    let own = File::open(OWN)?;
    let read = || {
        let mut reads = NamespaceReads { found: Vec::new(), failed: None, timed_out: false };
        for (at, namespace) in namespaces.iter().enumerate() {
            if Instant::now() > until {
                reads.timed_out = true;
                break;
            }
            match entered(&namespace.path).and_then(|entered| if entered { look(&own) } else { Ok(None) }) {
                Ok(found) => reads.found.extend(found.map(|found| (at, found))),
                Err(error) => reads.failed = reads.failed.or(Some(error)),
            }
        }
        reads
    };
    let reads = std::thread::scope(|scope| scope.spawn(read).join());
    reads.map_err(|_| io::Error::other("reading network namespaces panicked"))
}

/// Moves the calling thread there; `false` if that is a namespace no more, or a plain file of that name.
fn entered(path: &Path) -> io::Result<bool> {
    let gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EINVAL));
    let moved = File::open(path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
    match moved {
        Ok(()) => Ok(true),
        Err(error) if gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The addresses of the calling thread's namespace, and whether it hangs on the namespace `node`.
///
/// # Errors
/// If the kernel does not answer.
pub fn namespace_addresses(node: &File) -> io::Result<NamespaceAddresses> {
    let mut socket = Netlink::open(NETLINK_ROUTE)?;
    let mut addresses = Vec::new();
    socket.dump_once(&Request::new(RTM_GETADDR, 0, &[0; IFADDRMSG]), &mut |received| {
        let index = received.payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        let attributes = received.attributes(IFADDRMSG);
        let ip = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS)).and_then(address);
        addresses.extend(index.zip(ip).filter(|(_, ip)| !ip.is_loopback()));
        Ok(())
    })?;
    let mut peers = BTreeSet::new();
    // The kernel gives namespaces of peers an ID when it lists their links.
    socket.dump_once(&Request::new(RTM_GETLINK, 0, &[0; IFINFOMSG]), &mut |received| {
        let peer = received.attributes(IFINFOMSG).find_array(IFLA_LINK_NETNSID).map(i32::from_ne_bytes);
        peers.extend(peer);
        Ok(())
    })?;
    let is_attached = namespace_id(&mut socket, node)?.is_some_and(|id| peers.contains(&id));
    Ok(NamespaceAddresses { addresses, is_attached })
}

/// The calling thread's ID of another namespace, if it has one.
fn namespace_id(socket: &mut Netlink, of: &File) -> io::Result<Option<i32>> {
    let mut request = Request::new(RTM_GETNSID, 0, &[0; RTGENMSG]);
    request.attribute(NETNSA_FD, &of.as_raw_fd().to_ne_bytes());
    let mut id = None;
    socket.query(&request, &mut |received| {
        id = received.attributes(RTGENMSG).find_array(NETNSA_NSID).map(i32::from_ne_bytes).or(id);
        Ok(())
    })?;
    Ok(id.filter(|id| *id >= 0))
}

/// What in the calling thread's namespace may take packets before its sockets do: rules, virtual machines, programs that
/// read packets themselves. Empty: nothing that is known here.
///
/// # Errors
/// If the kernel does not answer.
pub fn interceptors() -> io::Result<Vec<&'static str>> {
    let mut found = Vec::new();
    let legacy = ["ip", "ip6"].iter().any(|family| {
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"));
        names.is_ok_and(|names| !names.trim().is_empty())
    });
    if legacy || super::nftables::has_any_table()? {
        found.push(FILTER_RULES);
    }
    let machine = |kind: &Option<String>| matches!(kind.as_deref(), Some("tun" | "macvtap" | "ipvtap"));
    if super::node::links()?.iter().any(|link| machine(&link.kind)) {
        found.push("a virtual machine's interface");
    }
    let raw = std::fs::read_to_string("/proc/thread-self/net/packet").unwrap_or_default();
    if raw.lines().nth(1).is_some() {
        found.push("a packet socket");
    }
    Ok(found)
}
