//! The server's thread, which accepts and serves connections.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::sys::socket::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::answer::answer;
use super::binding::Binding;
use super::encoding::Encoding;
use super::event::Command;
use super::exchange::refuse_with;
use super::http::{Connection, Then};
use super::shared::Shared;
use super::status::Status;

/// A command to the thread, acknowledged when done. The thread stops when the sender is dropped.
#[derive(Debug)]
pub(super) enum Control {
    Down(Sender<()>),
    Up(Sender<()>),
}

/// Serves until the sender of `control` is dropped.
pub(super) async fn run(
    listener: TcpListener,
    binding: Binding,
    shared: Arc<Shared>,
    mut control: UnboundedReceiver<Control>,
) {
    let mut listener = Some(listen(listener));
    let mut connections = JoinSet::new();
    tokio::spawn(send_bookmarks_periodically(Arc::clone(&shared)));
    loop {
        tokio::select! {
            command = control.recv() => match command {
                None => break,
                Some(Control::Down(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Control::Up(done)) => {
                    if listener.is_none() {
                        listener = Some(listen(binding.bind_again()));
                    }
                    let _ = done.send(());
                }
            },
            stream = accept(listener.as_ref()) => {
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
            // Reaps finished connections.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A listener that stops listening when dropped.
///
/// Closing the last descriptor is not enough: a child that a test is starting has a copy of every descriptor until
/// exec.
struct Listener(tokio::net::TcpListener);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

fn listen(listener: TcpListener) -> Listener {
    listener.set_nonblocking(true).expect("a listener can be non-blocking");
    Listener(tokio::net::TcpListener::from_std(listener).expect("the runtime takes a listener"))
}

async fn accept(listener: Option<&Listener>) -> TcpStream {
    let Some(Listener(listener)) = listener else { return std::future::pending().await };
    loop {
        // An error here concerns only a client that has closed its connection.
        if let Ok((stream, _)) = listener.accept().await {
            return stream;
        }
    }
}

async fn send_bookmarks_periodically(shared: Arc<Shared>) {
    let mut every = shared.bookmark_every.subscribe();
    loop {
        let interval = *every.borrow_and_update();
        tokio::select! {
            _ = every.changed() => {}
            () = sleep(interval) => {
                let store = &shared.state().store;
                store.command(None, &Command::Bookmark(store.version()));
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut connection = Connection::new(stream, shared.pace.subscribe());
    loop {
        let request = match connection.request().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                let _ = refuse_with(&mut connection, &Status::bad_request(error.to_string()), Encoding::Json).await;
                return;
            }
        };
        // A closed connection is not an error of the server.
        match answer(&mut connection, &shared, &request).await {
            Ok(Then::Reuse) if !request.close => {}
            _ => return,
        }
    }
}
