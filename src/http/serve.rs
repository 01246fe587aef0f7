//! Listening, and conversations with clients that may be slow, many or hostile.
//!
//! In: addresses, pages. Out: answers on sockets. Must not know: what is asked and answered.
//! A port that is taken does not stop the proxy: it is tried again every five seconds, like kube-proxy does.

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
/// After a failure to accept, which is about the process rather than the client.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
const LISTEN_BACKLOG: i32 = 1024;
/// How much of a body anyone may send that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How much a client's headers and an answer on its way may take.
const BUFFER_BYTES: usize = 16 * 1024;

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct ServerTimeouts {
    /// For a request to come, the first as well as the next on the same connection; and then for its body.
    pub request: Duration,
    /// For a connection as a whole: then it ends after the answer under way.
    pub connection: Duration,
    /// For the answers under way when a server stops.
    pub shutdown: Duration,
}

impl Default for ServerTimeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { request: seconds(30), connection: seconds(600), shutdown: seconds(3) }
    }
}

/// The clients of one or more servers, and how many there may be: a new one takes the place of the one that has been
/// there longest. So a client that asks at once is answered, however many others do nothing.
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
    /// Somebody had to go, which is in the log.
    crowded: bool,
}

impl ConnectionLimiter {
    /// At most so many.
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
        // The lock is held, so that the place cannot be given back before it is taken.
        let task = tokio::spawn(async move {
            let _slot = slot;
            serve_connection((stream, client), handler, stop, timeouts).await;
        });
        open.tasks.insert(number, task.abort_handle());
        let oldest = if open.tasks.len() > self.max { open.tasks.pop_first() } else { None };
        let first_to_go = oldest.is_some() && !std::mem::replace(&mut open.crowded, true);
        drop(open);
        if let Some((_, oldest)) = oldest {
            oldest.abort();
        }
        if first_to_go {
            let max = self.max;
            warn!(
                "more than {max} HTTP clients at a time, the last one from {client}: each new one ends the oldest connection"
            );
        }
    }

    /// Waits until all are gone, but not for ever. Their servers have to be stopped before.
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
            open.crowded = false;
        }
        drop(open);
        self.clients.gone.notify_waiters();
    }
}

/// A server at work; it stops when dropped.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Answers whoever comes.
    pub fn start(listener: TcpListener, handler: Handler, clients: Arc<ConnectionLimiter>) -> Self {
        let (stop, stopped) = watch::channel(());
        let accepting = tokio::spawn(accept(listener, handler, clients, stopped));
        Self { stop, accepting }
    }

    /// Stops: when this returns, the port is free. Answers under way are finished, and the connections end.
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
                // To close it would not be enough: a tool that is being started has a copy until it runs its program.
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
                    warn!("cannot take connections, trying again: {error}");
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
    // As Go writes them: recordings and people compare.
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

/// Only PUT has a body that any page looks at.
async fn answer(handler: &Handler, request: Request<Incoming>, timeouts: ServerTimeouts) -> PageResponse {
    let (head, body) = request.into_parts();
    let body = if head.method == Method::PUT {
        match timeout(timeouts.request, Limited::new(body, MAX_BODY_BYTES).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return super::error(StatusCode::BAD_REQUEST, &error.to_string()),
            Err(_) => return super::error(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
        }
    } else {
        Bytes::new()
    };
    let request = Request::from_parts(head, body);
    if request.uri().path() != super::rules_page::PATH {
        return handler(&request);
    }
    // This one takes its time, and others must not wait for it.
    let handler = handler.clone();
    let answer = tokio::task::spawn_blocking(move || contain(|| handler(&request))).await;
    answer.ok().flatten().unwrap_or_else(|| {
        super::error(StatusCode::INTERNAL_SERVER_ERROR, "reading the rules panicked, the log has the message")
    })
}

/// Serves until dropped. `name` is for the log.
///
/// # Errors
/// If the port cannot be had and `hard_fail` forbids to go on without (`bindAddressHardFail`).
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
            Err(error) => error!("cannot serve {name} on {address}, trying again in {BIND_RETRY:?}: {error}"),
        }
        sleep(BIND_RETRY).await;
    }
}

/// The IPv4 wildcard means both families, as in Go, where the host has IPv6.
fn listen_on_families(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != Ipv4Addr::UNSPECIFIED {
        return listen(address, address.ip() == Ipv6Addr::UNSPECIFIED);
    }
    match listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()), true) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => listen(address, false),
        result => result,
    }
}

/// Listens at an address; `both`: at an IPv6 wildcard, IPv4 clients are welcome too.
///
/// # Errors
/// If it cannot be had.
pub fn listen(address: SocketAddr, both: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // net.ipv6.bindv6only may say otherwise.
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
