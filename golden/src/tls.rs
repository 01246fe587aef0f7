//! A TLS terminator in front of a plain HTTP server.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use openssl::nid::Nid;
use openssl::ssl::{AlpnError, Ssl, SslContext, SslContextBuilder, SslMethod, SslVerifyMode, select_next_proto};
use openssl::x509::store::X509StoreBuilder;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio_openssl::SslStream;

use crate::pki::Certified;

/// A running terminator, stopped with its connections when dropped.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    context: Mutex<SslContext>,
    clients: Mutex<Vec<String>>,
    peers: Mutex<Vec<SocketAddr>>,
    /// Changes when connections are to be closed.
    drops: watch::Sender<u64>,
}

/// The context of a server.
///
/// `clients` is the CA of requested client certificates, `protocols` the ALPN list.
///
/// # Panics
/// If OpenSSL rejects the certificate.
#[must_use]
pub fn server_context(server: &Certified, clients: Option<&Certified>, protocols: &'static [u8]) -> SslContext {
    let mut builder = SslContextBuilder::new(SslMethod::tls_server()).expect("a context");
    // Certificates that the client must refuse have to reach it.
    builder.set_security_level(0);
    builder.set_certificate(&server.certificate).expect("a certificate");
    builder.set_private_key(&server.key).expect("a key");
    if let Some(clients) = clients {
        let mut store = X509StoreBuilder::new().expect("a store");
        store.add_cert(clients.certificate.clone()).expect("an authority");
        builder.set_verify_cert_store(store.build()).expect("a store");
        builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        builder.set_session_id_context(b"golden").expect("a session context");
    }
    builder.set_alpn_select_callback(move |_, offered| select_next_proto(protocols, offered).ok_or(AlpnError::NOACK));
    builder.build()
}

impl TlsFront {
    /// Terminates TLS at a listener and forwards to `backend`, in the namespace of the calling thread.
    ///
    /// # Panics
    /// If the thread cannot be started.
    #[must_use]
    pub fn start(listener: TcpListener, context: SslContext, backend: SocketAddr) -> Self {
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a non-blocking listener");
        let shared = Arc::new(Shared {
            context: Mutex::new(context),
            clients: Mutex::default(),
            peers: Mutex::default(),
            drops: watch::Sender::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, backend, of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// The base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Uses another context for new connections.
    pub fn set_context(&self, context: SslContext) {
        *lock(&self.shared.context) = context;
    }

    /// Closes all connections without a TLS alert.
    pub fn drop_connections(&self) {
        self.shared.drops.send_modify(|drops| *drops += 1);
    }

    /// The common names of the client certificates of all connections; empty for none.
    #[must_use]
    pub fn clients(&self) -> Vec<String> {
        lock(&self.shared.clients).clone()
    }

    /// The client addresses of all connections.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        lock(&self.shared.peers).clone()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, backend: SocketAddr, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((client, peer)) = listener.accept().await else { continue };
        lock(&shared.peers).push(peer);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut drops = shared.drops.subscribe();
            tokio::select! {
                // The client reports errors.
                _ = copy(client, backend, &shared) => {}
                _ = drops.changed() => {}
            }
        });
    }
}

async fn copy(client: TcpStream, backend: SocketAddr, shared: &Shared) -> Option<()> {
    let session = Ssl::new(&lock(&shared.context)).ok()?;
    let mut client = SslStream::new(session, client).ok()?;
    Pin::new(&mut client).accept().await.ok()?;
    let certificate = client.ssl().peer_certificate();
    let name = certificate.and_then(|certificate| {
        let name = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).next()?;
        name.data().to_string().ok()
    });
    lock(&shared.clients).push(name.unwrap_or_default());
    let mut backend = TcpStream::connect(backend).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut backend).await.ok().map(|_| ())
}
