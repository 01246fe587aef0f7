//! The server's own thread: it listens, and serves each connection.

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

/// What the test wants of the thread; it answers when that is so. It stops when the sender is dropped.
#[derive(Debug)]
pub(super) enum Control {
    Down(Sender<()>),
    Up(Sender<()>),
}

/// Serves until the test drops its end of `control`.
pub(super) async fn run(
    listener: TcpListener,
    binding: Binding,
    shared: Arc<Shared>,
    mut control: UnboundedReceiver<Control>,
) {
    let mut listener = Some(listen(listener));
    let mut connections = JoinSet::new();
    tokio::spawn(bookmark_from_time_to_time(Arc::clone(&shared)));
    loop {
        tokio::select! {
            wish = control.recv() => match wish {
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
            // Only so that finished ones do not pile up.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A listener that stops listening when dropped, and not only when its last descriptor is closed: a child that a test
/// is just starting has a copy of every descriptor until it runs its program.
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
        // What goes wrong here (a client already gone) concerns that client alone.
        if let Ok((stream, _)) = listener.accept().await {
            return stream;
        }
    }
}

async fn bookmark_from_time_to_time(shared: Arc<Shared>) {
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
        // A client that has gone is no one's fault.
        match answer(&mut connection, &shared, &request).await {
            Ok(Then::Reuse) if !request.close => {}
            _ => return,
        }
    }
}
