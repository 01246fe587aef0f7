//! The listening sockets of one Service's health checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netfilter::IpFamily;
use nix::errno::Errno;
use proxier::model::NamespacedName;
use tracing::info;

use super::page::{LocalEndpoints, handler};
use crate::health::Health;
use crate::http::serve::{ConnectionLimiter, Server, listen};

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenAddress {
    /// Address and port.
    pub socket: SocketAddr,
    /// The IPv6 wildcard that accepts IPv4 clients too.
    pub dual_stack: bool,
}

impl ListenAddress {
    /// Both wildcards with one socket.
    pub fn dual_stack(port: u16) -> Self {
        Self { socket: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), dual_stack: true }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.socket, if self.dual_stack { " (dual-stack)" } else { "" })
    }
}

/// State shared by all listeners.
pub struct ListenerContext {
    /// `None`: the proxy counts as healthy.
    pub health: Option<Arc<Health>>,
    /// The connections of all health checks.
    pub clients: Arc<ConnectionLimiter>,
    /// The most sockets.
    pub capacity: usize,
    /// The open sockets.
    pub open: usize,
}

/// The listening sockets of a Service.
#[derive(Default)]
pub struct ServiceListeners {
    /// The counts in responses.
    pub endpoints: Arc<LocalEndpoints>,
    /// Whether each family has its own socket, because a dual-stack one could not be opened.
    pub split: bool,
    sockets: BTreeMap<ListenAddress, ListeningSocket>,
}

struct ListeningSocket {
    closing: Arc<AtomicBool>,
    server: Server,
}

impl ServiceListeners {
    /// Closes sockets that are not in `desired`. If the port is no longer served, requests under way get 503.
    pub async fn close_others(
        &mut self,
        service: &NamespacedName,
        desired: &BTreeSet<ListenAddress>,
        shared: &mut ListenerContext,
    ) {
        let other: Vec<_> = self.sockets.extract_if(.., |address, _| !desired.contains(address)).collect();
        for (address, socket) in other {
            info!("Stopped serving health checks of Service {service} on {address}");
            let moved = desired.iter().any(|kept| kept.socket.port() == address.socket.port());
            socket.closing.store(!moved, Ordering::Relaxed);
            socket.server.stop().await;
            shared.open -= 1;
        }
    }

    /// Opens the missing sockets of `desired`. Returns the problems, and whether a dual-stack socket failed.
    pub fn open_missing(
        &mut self,
        service: &NamespacedName,
        desired: &BTreeSet<ListenAddress>,
        shared: &mut ListenerContext,
    ) -> (Vec<String>, bool) {
        let (mut problems, mut no_dual_stack) = (Vec::new(), false);
        for address in desired {
            if self.sockets.contains_key(address) {
                continue;
            }
            if shared.open >= shared.capacity {
                let most = shared.capacity;
                problems.push(format!(
                    "{address}: all {most} sockets that RLIMIT_NOFILE leaves for health checks are in use; raise the limit"
                ));
                continue;
            }
            match listen(address.socket, address.dual_stack) {
                Ok(listener) => {
                    info!("Serving health checks of Service {service} on {address}");
                    let closing = Arc::<AtomicBool>::default();
                    let page = handler(service, self.endpoints.clone(), closing.clone(), shared.health.clone());
                    let server = Server::start(listener, page, shared.clients.clone());
                    self.sockets.insert(*address, ListeningSocket { closing, server });
                    shared.open += 1;
                }
                Err(error) => {
                    no_dual_stack |= address.dual_stack && !is_exhaustion(&error);
                    problems.push(format!("{address}: {error}"));
                }
            }
        }
        (problems, no_dual_stack)
    }
}

/// Whether two sockets would fail as well.
fn is_exhaustion(error: &io::Error) -> bool {
    let of = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    of.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// The wildcard address of a family.
pub fn wildcard(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
        IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}
