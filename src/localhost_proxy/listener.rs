//! The listening socket of a node port and its connections.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netfilter::IpFamily;
use proxier::model::localhost_ports::LocalhostPort;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::budget::SocketBudget;
use super::choice::EndpointChoice;
use super::pipes::PipePool;
use super::relay::relay;

/// How long a connection to an endpoint may take. There is no second try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed accept, for example without a free descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// The most connections that wait to be accepted, as Go's; the kernel uses the lower `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Intervals of TCP keepalive, as Go's: a peer that vanished is noticed after 15 s + 9 x 15 s.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The listening socket of a node port. Dropped, it closes with all its connections.
#[derive(Debug)]
pub struct Listener {
    choice: Arc<Mutex<EndpointChoice>>,
    task: JoinHandle<()>,
    _socket: OwnedSemaphorePermit,
}

impl Listener {
    /// Listens on the loopback address of a family.
    ///
    /// # Errors
    /// The address and port are in use, or no descriptor is left.
    pub fn open(family: IpFamily, port: &LocalhostPort, budget: &SocketBudget) -> io::Result<Self> {
        let full = || io::Error::other("no socket is left; raise RLIMIT_NOFILE");
        let permit = budget.listener().ok_or_else(full)?;
        let address = SocketAddr::new(family.localhost(), port.node_port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = register(socket.into())?;
        let choice = Arc::new(Mutex::new(EndpointChoice::new(port)));
        let task = tokio::spawn(serve(listener, port.node_port, choice.clone(), budget.clone()));
        Ok(Self { choice, task, _socket: permit })
    }

    /// Closes the socket and all connections, and waits until that is done: the port may be opened again at once.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Takes other endpoints or another affinity; connections stay.
    pub fn update(&self, port: &LocalhostPort) {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner).update(port);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lets the runtime tell when clients wait. tokio's own listener accepts before there are sockets for the connection.
#[allow(unsafe_code)]
fn register(listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: the listener owns its file descriptor, and nothing replaces or closes it while the AsyncFd has it.
    Ok(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?)
}

/// Accepts connections. Dropped, it drops them all.
async fn serve(
    listener: AsyncFd<TcpListener>,
    node_port: u16,
    choice: Arc<Mutex<EndpointChoice>>,
    budget: SocketBudget,
) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, node_port, &budget) => accepted,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
        };
        let (client, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!("Failed to accept a connection to localhost node port {node_port}: {error}");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let endpoint = choice.lock().unwrap_or_else(PoisonError::into_inner).choose(Instant::now());
        if let Some(endpoint) = endpoint {
            open.spawn(connect(client, endpoint, permit, budget.pipes.clone()));
        }
    }
}

/// Waits for a client and for the sockets that its connection needs; until both are there it stays in the kernel's queue.
async fn accept(
    listener: &AsyncFd<TcpListener>,
    node_port: u16,
    budget: &SocketBudget,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        let mut ready = listener.readable().await?;
        let permit = budget.connection(node_port).await;
        // The client may have gone meanwhile.
        let Ok(accepted) = ready.try_io(|listener| listener.get_ref().accept()) else { continue };
        let (client, _) = accepted?;
        client.set_nonblocking(true)?;
        return Ok((TcpStream::from_std(client)?, permit));
    }
}

/// Connects a client to an endpoint until both are done or one fails.
async fn connect(client: TcpStream, endpoint: SocketAddr, _permit: OwnedSemaphorePermit, pipes: Arc<PipePool>) {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint)).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let backend = match connected {
        Ok(backend) => backend,
        Err(error) => return debug!("Failed to connect a client of a localhost node port to {endpoint}: {error}"),
    };
    for stream in [&client, &backend] {
        configure(stream);
    }
    if let Err(error) = relay(&client, &backend, &pipes).await {
        debug!("Closed the connection of a localhost node port to {endpoint}: {error}");
    }
}

/// Sets what Go sets for every connection. A socket whose peer is gone may refuse it, and fails soon.
fn configure(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(9);
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}
