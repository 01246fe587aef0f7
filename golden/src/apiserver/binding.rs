//! The address of the server, and how to take it again after having given it up: in the namespace of the test's listener.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};

/// `SIOCGSKNS` of linux/sockios.h, which libc does not name: the network namespace of a socket.
const NAMESPACE_OF_SOCKET: libc::Ioctl = 0x894C;

#[derive(Debug)]
pub(super) struct Binding {
    address: SocketAddr,
    /// Unknown without rights over the namespace; then it is our own.
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
        // A thread of its own, because joining a namespace is for good.
        std::thread::scope(|scope| scope.spawn(|| self.bind()).join().expect("the binding thread lives"))
            .unwrap_or_else(|error| panic!("cannot listen at {} again: {error}", self.address))
    }

    fn bind(&self) -> io::Result<TcpListener> {
        if let Some(namespace) = &self.namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        // Someone's outgoing connection may sit on the port for a moment.
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
    // SAFETY: the kernel has just made this descriptor for us, nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
