//! HTTP servers for clients that may be slow, many or hostile.
//!
//! A port in use does not stop the proxy: listening is retried every five seconds, as in kube-proxy.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use netfilter::IpFamily;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{ClientFamily, Handler, PageResponse};
use crate::containment::contain;

const BIND_RETRY: Duration = Duration::from_secs(5);
/// The pause after a failed accept, which concerns the process rather than the client.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
const LISTEN_BACKLOG: i32 = 1024;
/// The largest request body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// The largest request head, and the write buffer of a connection.
const BUFFER_BYTES: usize = 16 * 1024;

/// Timeouts of clients.
#[derive(Clone, Copy, Debug)]
pub struct ServerTimeouts {
    /// For a request head, the first as well as the next on the same connection; and again for its body.
    pub request: Duration,
    /// For the whole connection: it is closed after the response under way.
    pub connection: Duration,
    /// For responses under way when a server stops.
    pub shutdown: Duration,
}

impl Default for ServerTimeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { request: seconds(30), connection: seconds(600), shutdown: seconds(3) }
    }
}

/// Limits the connections of one or more servers: a new one replaces the oldest.
///
/// So a client that sends its request at once is served, however many others are idle.
#[derive(Debug)]
pub struct ConnectionLimiter {
    max: usize,
    timeouts: ServerTimeouts,
    open: Mutex<OpenConnections>,
    gone: Notify,
}

#[derive(Debug, Default)]
struct OpenConnections {
    last: u64,
    tasks: BTreeMap<u64, AbortHandle>,
    /// The limit was reached, and that is logged.
    limit_logged: bool,
}

impl ConnectionLimiter {
    /// A limiter for at most `max` connections.
    pub fn new(max: usize, timeouts: ServerTimeouts) -> Arc<Self> {
        Arc::new(Self { max, timeouts, open: Mutex::default(), gone: Notify::new() })
    }

    fn open(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, (stream, client): (TcpStream, SocketAddr), handler: Handler, stop: watch::Receiver<()>) {
        let mut open = self.open();
        open.last += 1;
        let slot = ConnectionSlot { number: open.last, clients: self.clone() };
        let number = slot.number;
        let timeouts = self.timeouts;
        // Holding the lock keeps the task from removing its entry before it is inserted.
        let task = tokio::spawn(async move {
            let _slot = slot;
            serve_connection((stream, client), handler, stop, timeouts).await;
        });
        open.tasks.insert(number, task.abort_handle());
        let oldest = if open.tasks.len() > self.max { open.tasks.pop_first() } else { None };
        let log_limit = oldest.is_some() && !std::mem::replace(&mut open.limit_logged, true);
        drop(open);
        if let Some((_, oldest)) = oldest {
            oldest.abort();
        }
        if log_limit {
            let max = self.max;
            warn!(
                "Reached the limit of {max} HTTP connections, closing the oldest for each new one; newest client: {client}"
            );
        }
    }

    /// Waits until all connections are closed, at most for the shutdown timeout. Their servers must be stopped before.
    pub async fn drain(&self) {
        let all = async {
            loop {
                let gone = self.gone.notified();
                if self.open().tasks.is_empty() {
                    return;
                }
                gone.await;
            }
        };
        let _ = timeout(self.timeouts.shutdown, all).await;
    }
}

struct ConnectionSlot {
    number: u64,
    clients: Arc<ConnectionLimiter>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.clients.open();
        open.tasks.remove(&self.number);
        if open.tasks.len() <= self.clients.max / 2 {
            open.limit_logged = false;
        }
        drop(open);
        self.clients.gone.notify_waiters();
    }
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Serves a listener.
    pub fn start(listener: TcpListener, handler: Handler, clients: Arc<ConnectionLimiter>) -> Self {
        let (stop, stopped) = watch::channel(());
        let accepting = tokio::spawn(accept(listener, handler, clients, stopped));
        Self { stop, accepting }
    }

    /// Stops: the port is free when this returns. Responses under way are finished, then connections close.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = self.accepting.await;
    }
}

async fn accept(
    listener: TcpListener,
    handler: Handler,
    clients: Arc<ConnectionLimiter>,
    mut stop: watch::Receiver<()>,
) {
    let stopped = stop.clone();
    let mut logged = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => {
                // Closing is not enough: a child process has a copy of the socket between fork and exec.
                let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
                return;
            }
        };
        match accepted {
            Ok(client) => {
                logged = false;
                clients.admit(client, handler.clone(), stopped.clone());
            }
            Err(error) => {
                if !std::mem::replace(&mut logged, true) {
                    warn!("Failed to accept a connection, retrying: {error}");
                }
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve_connection(
    (stream, client): (TcpStream, SocketAddr),
    handler: Handler,
    mut stop: watch::Receiver<()>,
    timeouts: ServerTimeouts,
) {
    let family = ClientFamily(IpFamily::of(&client.ip().to_canonical()));
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(family);
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(answer(&handler, request, timeouts).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(timeouts.request).max_buf_size(BUFFER_BYTES);
    // As Go writes them, so that recordings are comparable.
    server.title_case_headers(true);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = &mut connection => return,
        _ = stop.changed() => {}
        () = sleep(timeouts.connection) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(timeouts.shutdown, connection).await;
}

/// Calls the handler. Only PUT has a body that a page reads.
async fn answer(handler: &Handler, request: Request<Incoming>, timeouts: ServerTimeouts) -> PageResponse {
    let (head, body) = request.into_parts();
    let body = if head.method == Method::PUT {
        match timeout(timeouts.request, Limited::new(body, MAX_BODY_BYTES).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return super::error(StatusCode::BAD_REQUEST, &error.to_string()),
            Err(_) => return super::error(StatusCode::REQUEST_TIMEOUT, "timeout reading the request body"),
        }
    } else {
        Bytes::new()
    };
    let request = Request::from_parts(head, body);
    if request.uri().path() != super::rules_page::PATH {
        return handler(&request);
    }
    // This page takes seconds, and other requests must not wait for it.
    let handler = handler.clone();
    let answer = tokio::task::spawn_blocking(move || contain(|| handler(&request))).await;
    answer
        .ok()
        .flatten()
        .unwrap_or_else(|| super::error(StatusCode::INTERNAL_SERVER_ERROR, "reading the rules panicked, see the log"))
}

/// Serves until dropped. `name` is for the log.
///
/// # Errors
/// The process cannot listen and `hard_fail` (`bindAddressHardFail`) is set.
pub async fn serve(
    name: &str,
    address: SocketAddr,
    handler: Handler,
    clients: Arc<ConnectionLimiter>,
    hard_fail: bool,
) -> Result<Infallible, String> {
    loop {
        match listen_on_families(address) {
            Ok(listener) => {
                info!("Serving {name} on {address}");
                let _server = Server::start(listener, handler, clients);
                match std::future::pending::<Infallible>().await {}
            }
            Err(error) if hard_fail => {
                return Err(format!("cannot serve {name} on {address}: {error} (bindAddressHardFail is set)"));
            }
            Err(error) => error!("Failed to serve {name} on {address}, retrying in {BIND_RETRY:?}: {error}"),
        }
        sleep(BIND_RETRY).await;
    }
}

/// Listens on both families for the IPv4 wildcard, as Go does, where the host has IPv6.
fn listen_on_families(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != Ipv4Addr::UNSPECIFIED {
        return listen(address, address.ip() == Ipv6Addr::UNSPECIFIED);
    }
    match listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()), true) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => listen(address, false),
        result => result,
    }
}

/// Listens on an address. `both`: an IPv6 wildcard accepts IPv4 clients too.
///
/// # Errors
/// The kernel refuses the address or port.
pub fn listen(address: SocketAddr, both: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Overrides net.ipv6.bindv6only.
        socket.set_only_v6(!both)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
