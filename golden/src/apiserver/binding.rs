//! The address and network namespace of the server, to listen there again.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};

/// `SIOCGSKNS` of linux/sockios.h, which libc lacks: the network namespace of a socket.
const NAMESPACE_OF_SOCKET: libc::Ioctl = 0x894C;

#[derive(Debug)]
pub(super) struct Binding {
    address: SocketAddr,
    /// `None` without capabilities over the namespace; then the current one is used.
    namespace: Option<OwnedFd>,
}

impl Binding {
    pub(super) fn of(listener: &TcpListener) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        Self { address, namespace: namespace_of(listener) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new listener at the same address, in the same namespace.
    pub(super) fn bind_again(&self) -> TcpListener {
        // A thread of its own, because it stays in the namespace it joins.
        std::thread::scope(|scope| scope.spawn(|| self.bind()).join().expect("the binding thread lives"))
            .unwrap_or_else(|error| panic!("cannot listen at {} again: {error}", self.address))
    }

    fn bind(&self) -> io::Result<TcpListener> {
        if let Some(namespace) = &self.namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        // An outgoing connection may use the port for a moment.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match TcpListener::bind(self.address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }
}

#[allow(unsafe_code)] // nothing safe wraps this request
fn namespace_of(listener: &TcpListener) -> Option<OwnedFd> {
    // SAFETY: the request takes no argument and returns a new descriptor or an error.
    let fd = Errno::result(unsafe { libc::ioctl(listener.as_raw_fd(), NAMESPACE_OF_SOCKET) }).ok()?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
