//! Servers with well-behaved and misbehaving clients.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream as Client;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::http::{PLAIN, ResponseBuilder};

const LIMIT: Duration = Duration::from_secs(20);

/// A server on its own thread and runtime.
struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn start(most: usize, timeouts: ServerTimeouts, body: &'static str) -> Running {
    let (ready, address) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let handler: Handler = Arc::new(move |request| {
        assert!(request.uri().path() != crate::http::rules_page::PATH, "rules that inspection does not expect");
        let put = String::from_utf8_lossy(request.body()).into_owned();
        ResponseBuilder::new(PLAIN, format!("{body}{put}")).build()
    });
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = listen("127.0.0.1:0".parse().expect("an address"), false).expect("a port");
            let address = listener.local_addr().expect("an address");
            let clients = ConnectionLimiter::new(most, timeouts);
            let server = Server::start(listener, handler, clients.clone());
            ready.send(address).expect("the test listens");
            let _ = stopped.await;
            server.stop().await;
            // The port is free again at once.
            drop(listen(address, false).expect("the port"));
            clients.drain().await;
        });
    });
    Running { address: address.recv().expect("an address"), stop: Some(stop), thread: Some(thread) }
}

impl Running {
    fn connect(&self) -> Client {
        let client = Client::connect_timeout(&self.address, LIMIT).expect("a connection");
        client.set_read_timeout(Some(LIMIT)).expect("a timeout");
        client
    }

    fn ask(&self, request: &str) -> String {
        let mut client = self.connect();
        client.write_all(request.as_bytes()).expect("to send");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn stop(&mut self) {
        let _ = self.stop.take().expect("running").send(());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// How long the server took to close the connection.
fn ended(mut client: Client) -> Duration {
    let begun = Instant::now();
    let mut rest = Vec::new();
    match client.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection is still there: {error}"),
    }
    begun.elapsed()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[test]
fn answers_have_lengths_and_headers_as_go_writes_them() {
    let running = start(8, ServerTimeouts::default(), "hello");
    let answer = running.ask(GET);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Length: 5\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    let head = running.ask(&GET.replace("GET", "HEAD"));
    assert!(head.contains("\r\nContent-Length: 5\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    // A body is read with PUT only, and only up to a limit.
    let with = |method: &str, length: usize| {
        let body = "x".repeat(length.min(100_000));
        running.ask(&format!(
            "{method} / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    };
    assert!(with("PUT", 3).ends_with("helloxxx"));
    assert!(with("POST", 3).ends_with("hello"));
    assert!(with("PUT", 65_537).starts_with("HTTP/1.1 400 "));
    assert!(running.ask("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
}

#[test]
fn clients_that_exceed_the_timeout_are_disconnected() {
    let request = Duration::from_millis(300);
    let running = start(8, ServerTimeouts { request, ..ServerTimeouts::default() }, "hello");
    let silent = running.connect();
    let mut slow = running.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHo").expect("to send");
    let mut idle = running.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("to send");
    let mut withholding = running.connect();
    withholding.write_all(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").expect("to send");
    for client in [silent, slow, idle, withholding] {
        assert!(ended(client) < LIMIT / 2);
    }
}

#[test]
fn a_client_that_does_not_read_is_disconnected_after_the_connection_timeout() {
    let timeouts =
        ServerTimeouts { request: LIMIT, connection: Duration::from_millis(300), shutdown: Duration::from_millis(300) };
    // More than the sockets' buffers hold.
    let body = Box::leak("x".repeat(32 << 20).into_boxed_str());
    let running = start(8, timeouts, body);
    let mut client = running.connect();
    client.write_all(GET.as_bytes()).expect("to send");
    std::thread::sleep(Duration::from_millis(900));
    let mut read = Vec::new();
    let _ = client.read_to_end(&mut read);
    assert!(read.len() < body.len(), "all {} bytes came", read.len());
}

#[test]
fn ten_thousand_connections_do_not_keep_a_client_from_a_response() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("to raise the limit");
    let many = usize::try_from(hard.saturating_sub(500)).map_or(10_000, |files| files.min(10_000));
    let running = start(64, ServerTimeouts::default(), "hello");
    let mut crowd = Vec::new();
    for number in 0..many {
        let mut client = running.connect();
        if number % 2 == 0 {
            // The server may have closed it already.
            let _ = client.write_all(b"GET / HTTP/1.1\r\nHost:");
        }
        crowd.push(client);
        if number % 1000 == 999 {
            let begun = Instant::now();
            assert!(running.ask(GET).ends_with("hello"));
            assert!(begun.elapsed() < Duration::from_secs(2), "after {number}: {:?}", begun.elapsed());
        }
    }
    // All but the newest are closed.
    let gone = crowd.drain(..many - 64).filter(|client| {
        client.shutdown(Shutdown::Write).is_err() || {
            let mut client = client;
            matches!(client.read(&mut [0; 256]), Ok(0)) || client.peek(&mut [0]).is_err()
        }
    });
    assert_eq!(gone.count(), many - 64);
}

#[test]
fn stopping_ends_idle_connections_and_frees_the_port() {
    let mut running = start(8, ServerTimeouts::default(), "hello");
    let mut idle = running.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("to send");
    let mut answer = [0; 1024];
    assert!(idle.read(&mut answer).expect("an answer") > 0);
    running.stop();
    assert!(ended(idle) < Duration::from_secs(2));
}

#[test]
fn a_wildcard_serves_both_families_and_a_port_in_use_is_reported() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = listen_on_families("0.0.0.0:0".parse().expect("an address")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        assert!(Client::connect(("127.0.0.1", port)).is_ok());
        if Client::connect(("::1", port)).is_err() {
            assert!(std::net::TcpListener::bind("[::1]:0").is_err(), "the host has IPv6");
        }
        let taken = SocketAddr::from(([0, 0, 0, 0], port));
        assert_eq!(listen_on_families(taken).err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
        let page: Handler = Arc::new(|_| ResponseBuilder::new(PLAIN, "").build());
        let clients = ConnectionLimiter::new(1, ServerTimeouts::default());
        let problem = serve("health", taken, page, clients, true).await.expect_err("the port is taken");
        assert!(problem.contains("health") && problem.contains(&port.to_string()), "{problem}");
    });
}

#[test]
fn panic_while_rules_are_read_costs_that_request_only() {
    let server = start(10, ServerTimeouts::default(), "fine");
    let answer = server.ask("GET /debug/rules HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains("reading the rules panicked"), "{answer}");
    let answer = server.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.ends_with("fine"), "{answer}");
}

#[test]
fn stopping_frees_the_port_though_a_process_that_is_starting_has_a_copy_of_the_socket() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = listen("[::1]:0".parse().expect("an address"), false).expect("a port");
        let address = listener.local_addr().expect("an address");
        let copy = nix::unistd::dup(&listener).expect("what fork does");
        let handler: Handler = Arc::new(|_| ResponseBuilder::new(PLAIN, "fine".to_owned()).build());
        let server = Server::start(listener, handler, ConnectionLimiter::new(10, ServerTimeouts::default()));
        server.stop().await;
        drop(listen(address, false).expect("the port is free"));
        drop(copy);
    });
}
