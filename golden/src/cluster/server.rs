//! The servers of the pods.
//!
//! Each answers on TCP and UDP in both families with the pod's name and the client's address. All servers of a cluster
//! share one thread.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread::JoinHandle;

use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::address::{EXTERNAL_IP, Family, Pod, STRANGER, VIP};
use super::objects::PORT;
use crate::netns::Netns;

/// The thread of all servers of a cluster.
#[derive(Debug)]
pub(super) struct Servers {
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    pub(super) fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        Self { runtime: handle, stop: Some(stop), thread: Some(thread) }
    }

    /// Starts the servers of a pod, which are reachable on return.
    pub(super) fn start(&self, pod: &Pod, netns: &Netns, port: u16) {
        for family in Family::BOTH {
            let at = pod.address.at(family, port);
            self.tcp(pod.name, netns, at);
            self.udp(pod.name, netns, at);
        }
    }

    /// Starts the stranger, which answers packets that were not translated.
    pub(super) fn start_stranger(&self, netns: &Netns) {
        self.tcp(STRANGER.name, netns, SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)));
        for family in Family::BOTH {
            // One socket for each address, so that answers have the right source.
            self.udp(STRANGER.name, netns, VIP.at(family, PORT));
            self.udp(STRANGER.name, netns, EXTERNAL_IP.at(family, PORT));
        }
    }

    fn tcp(&self, name: &'static str, netns: &Netns, at: SocketAddr) {
        let listener = netns.enter(|| TcpListener::bind(at)).unwrap_or_else(|e| panic!("{name} at {at}: {e}"));
        listener.set_nonblocking(true).expect("a listener that does not block");
        let _context = self.runtime.enter();
        self.runtime.spawn(serve_tcp(name, tokio::net::TcpListener::from_std(listener).expect("a listener for tokio")));
    }

    fn udp(&self, name: &'static str, netns: &Netns, at: SocketAddr) {
        let socket = netns.enter(|| UdpSocket::bind(at)).unwrap_or_else(|e| panic!("{name} at {at}: {e}"));
        socket.set_nonblocking(true).expect("a socket that does not block");
        let _context = self.runtime.enter();
        self.runtime.spawn(serve_udp(name, tokio::net::UdpSocket::from_std(socket).expect("a socket for tokio")));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Greets each connection with one line, then echoes.
async fn serve_tcp(name: &'static str, listener: tokio::net::TcpListener) {
    while let Ok((mut stream, client)) = listener.accept().await {
        tokio::spawn(async move {
            let greeting = format!("{name} {client}\n");
            if stream.write_all(greeting.as_bytes()).await.is_ok() {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        });
    }
}

async fn serve_udp(name: &'static str, socket: tokio::net::UdpSocket) {
    let mut packet = [0; 64];
    loop {
        // An error here is an ICMP error for an earlier answer.
        if let Ok((_, client)) = socket.recv_from(&mut packet).await {
            let _ = socket.send_to(format!("{name} {client}\n").as_bytes(), client).await;
        }
    }
}
