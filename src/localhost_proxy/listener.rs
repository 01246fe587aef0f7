//! The listening socket of a node port and its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netfilter::IpFamily;
use proxier::model::localhost_ports::LocalhostPort;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

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

/// The sockets that all node ports share: those of listeners and of connections.
#[derive(Clone, Debug)]
pub struct SocketBudget {
    free: Arc<Semaphore>,
    pipes: Arc<PipePool>,
}

impl SocketBudget {
    /// At most `sockets` at a time, and `pipes` transfers without a copy.
    pub fn new(sockets: usize, pipes: usize) -> Self {
        let free = Arc::new(Semaphore::new(sockets.min(Semaphore::MAX_PERMITS)));
        Self { free, pipes: Arc::new(PipePool::new(pipes)) }
    }
}

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
        let full = |_| io::Error::other("no socket is left; raise RLIMIT_NOFILE");
        let permit = budget.free.clone().try_acquire_owned().map_err(full)?;
        let address = SocketAddr::new(family.localhost(), port.node_port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let choice = Arc::new(Mutex::new(EndpointChoice::new(port)));
        let task = tokio::spawn(serve(listener, choice.clone(), budget.clone()));
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

/// Accepts connections. Dropped, it drops them all.
async fn serve(listener: TcpListener, choice: Arc<Mutex<EndpointChoice>>, budget: SocketBudget) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
        };
        let client = match accepted {
            Ok((client, _)) => client,
            Err(error) => {
                debug!("Failed to accept a connection to a localhost node port: {error}");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Without two permits the next clients wait in the kernel's queue. The semaphore is never closed.
        let Ok(permit) = budget.free.clone().acquire_many_owned(2).await else { return };
        let endpoint = choice.lock().unwrap_or_else(PoisonError::into_inner).choose(Instant::now());
        if let Some(endpoint) = endpoint {
            open.spawn(connect(client, endpoint, permit, budget.pipes.clone()));
        }
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
