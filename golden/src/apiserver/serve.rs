//! The server's own thread: listens, takes requests, finds who answers them.
//!
//! In: connections, and the test's wish to be up or down. Out: answers by `list` and `watch`, or refusals.
//! Must not know: how objects are kept, how selectors work.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::sys::socket::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::binding::Binding;
use super::http::{Connection, Then};
use super::object::Object;
use super::options::Ask;
use super::request::Request;
use super::resource::Target;
use super::selector::Filter;
use super::shared::Shared;
use super::status::Status;
use super::watch::{Command, Open, refuse};
use super::{list, store, write};

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
                let _ = refuse_with(&mut connection, &Status::bad_request(error.to_string())).await;
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

async fn answer(connection: &mut Connection, shared: &Shared, request: &Request) -> io::Result<Then> {
    shared.state().requests.push(request.clone());
    shared.announce();
    connection.may_answer().await?;
    let target = Target::of_path(&request.path);
    if let Some(status) = refusal(shared, request, target.as_ref()) {
        return refuse_with(connection, &status).await;
    }
    match (request.method.as_str(), target) {
        ("GET", Some(target)) => match target.name {
            Some(name) => object(connection, shared, &target, name).await,
            None => collection(connection, shared, request, &target).await,
        },
        ("GET", None) => fixed(connection, &request.path).await,
        ("POST", Some(target)) if target.name.is_none() => {
            let created = write::create(&mut shared.state().store, &target, &request.body);
            written(connection, shared, &target, 201, created).await
        }
        ("PATCH", Some(target)) => {
            let name = target.name.unwrap_or_default();
            let patched = write::patch(&mut shared.state().store, &target, name, &request.body);
            written(connection, shared, &target, 200, patched).await
        }
        ("POST", None) => refuse_with(connection, &Status::of_code(404)).await,
        _ => refuse_with(connection, &Status::of_code(405)).await,
    }
}

async fn written(
    connection: &mut Connection,
    shared: &Shared,
    target: &Target<'_>,
    code: u16,
    outcome: Result<Object, Status>,
) -> io::Result<Then> {
    shared.announce();
    match outcome {
        Ok(object) => {
            let mut body = Vec::new();
            object.write(target.resource, &mut body);
            connection.respond(code, "", &body).await?;
            Ok(Then::Reuse)
        }
        Err(status) => refuse_with(connection, &status).await,
    }
}

fn refusal(shared: &Shared, request: &Request, target: Option<&Target>) -> Option<Status> {
    let mut state = shared.state();
    if let Some(code) = state.take_failure(target.map(|target| target.resource.kind)) {
        return Some(Status::of_code(code));
    }
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && wanted != request.authorization {
        return Some(Status::of_code(401));
    }
    let json = ["json", "*/*", "application/*"].iter().any(|media| request.accept.contains(media));
    (!json && !request.accept.is_empty()).then(|| Status::of_code(406))
}

async fn refuse_with(connection: &mut Connection, status: &Status) -> io::Result<Then> {
    let headers = if status.code == 429 { "Retry-After: 1\r\n" } else { "" };
    connection.respond(status.code, headers, status.json().to_string().as_bytes()).await?;
    Ok(Then::Reuse)
}

async fn fixed(connection: &mut Connection, path: &str) -> io::Result<Then> {
    let body = match path {
        "/healthz" | "/livez" | "/readyz" => "ok",
        "/version" => r#"{"major":"1","minor":"36","gitVersion":"v1.36.2","platform":"linux/amd64"}"#,
        _ => return refuse_with(connection, &Status::of_code(404)).await,
    };
    connection.respond(200, "", body.as_bytes()).await?;
    Ok(Then::Reuse)
}

async fn object(connection: &mut Connection, shared: &Shared, target: &Target<'_>, name: &str) -> io::Result<Then> {
    let key: store::Key = (target.namespace.unwrap_or_default().to_owned(), name.to_owned());
    let found = shared.state().store.get(target.resource, &key).cloned();
    let Some(object) = found else {
        return refuse_with(connection, &Status::not_found(target.resource.plural, name)).await;
    };
    let mut body = Vec::new();
    object.write(target.resource, &mut body);
    connection.respond(200, "", &body).await?;
    Ok(Then::Reuse)
}

async fn collection(
    connection: &mut Connection,
    shared: &Shared,
    request: &Request,
    target: &Target<'_>,
) -> io::Result<Then> {
    let param = |name| request.param(name).unwrap_or_default();
    let filter = Filter::parse(target.resource, &param("labelSelector"), &param("fieldSelector"));
    let streaming_allowed = !shared.state().refuse_streaming;
    let asked = filter.and_then(|filter| Ok((filter, Ask::of(request, streaming_allowed)?)));
    let (mut filter, ask) = match asked {
        Ok(asked) => asked,
        Err(status) => return refuse_with(connection, &status).await,
    };
    filter.namespace = target.namespace.map(str::to_owned);
    match ask {
        Ask::List(ask) => match list::find(shared, target.resource, &filter, &ask) {
            Ok(page) => list::send(connection, target.resource, &filter, &page).await.map(|()| Then::Reuse),
            Err(status) => refuse_with(connection, &status).await,
        },
        Ask::Watch(ask) => match Open::new(shared, target.resource, filter, ask) {
            Ok(open) => open.run(connection).await,
            Err(status) if status.code == 410 => refuse(connection, &status).await.map(|()| Then::Reuse),
            Err(status) => refuse_with(connection, &status).await,
        },
    }
}
