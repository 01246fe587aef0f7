//! The whole client with small servers on the loopback address.

use std::io::Write;
use std::net::{SocketAddr, TcpListener as StdListener};

use flate2::Compression;
use flate2::write::GzEncoder;
use golden::pki::{Certified, Profile};
use golden::tls::{TlsFront, server_context};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::config::{KubeProxyConfiguration, validate};

const JSON: &str = "application/json";

/// A client of a kubeconfig with these fields.
async fn client(name: &str, cluster: &str, user: &str) -> ApiClient {
    let path = std::env::temp_dir().join(format!("client-{name}-{}", std::process::id()));
    let text = format!(
        "clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    std::fs::write(&path, text).expect("a kubeconfig");
    let mut settings = validate(KubeProxyConfiguration::default().with_defaults(), "node-a").expect("defaults");
    settings.client.kubeconfig = Some(path);
    let metrics = Metrics::new("iptables").expect("metrics");
    connect(&settings, "", &metrics).await.expect("clients").objects
}

/// A server that reports each request head, and writes to the connection what the test sends.
async fn server() -> (SocketAddr, UnboundedReceiver<String>, UnboundedSender<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (heads, seen) = unbounded_channel();
    let (answers, mut pieces) = unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        loop {
            let Some(head) = head(&mut stream).await else { return };
            let _ = heads.send(head);
            while let Some(piece) = pieces.recv().await
                && !piece.is_empty()
            {
                stream.write_all(&piece).await.expect("a client");
            }
        }
    });
    (address, seen, answers)
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).expect("room");
    encoder.finish().expect("room")
}

async fn all(mut body: Body) -> Result<Vec<u8>, RequestError> {
    let mut text = Vec::new();
    while let Some(chunk) = body.chunk().await {
        text.extend(chunk?);
    }
    Ok(text)
}

fn ok(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}\r\n").as_bytes(), body].concat()
}

#[tokio::test]
async fn a_request_has_the_prefix_and_all_headers() {
    let (address, mut heads, answers) = server().await;
    let user = "token: secret, as: me, as-groups: [a, b]";
    let client = client("headers", &format!("server: 'http://{address}/prefix/'"), user).await;
    assert_eq!(client.server(), format!("http://{address}/prefix"));
    answers.send(ok("", b"{}")).expect("a server");
    let answer = client.get(Verb::List, "/api/v1/nodes?limit=500", JSON).await.expect("an answer");
    assert_eq!(all(answer.into_body()).await.as_deref(), Ok(b"{}".as_slice()));
    let head = heads.recv().await.expect("a request").to_ascii_lowercase();
    assert!(head.starts_with("get /prefix/api/v1/nodes?limit=500 http/1.1\r\n"), "{head}");
    for line in [
        "accept: application/json",
        "accept-encoding: gzip",
        "authorization: bearer secret",
        "impersonate-user: me",
        "impersonate-group: a",
        "impersonate-group: b",
        &format!("host: {address}"),
    ] {
        assert!(head.lines().any(|of| of == line), "{line} in {head}");
    }
}

#[tokio::test]
async fn compressed_answers_come_out_event_by_event() {
    let (address, _heads, answers) = server().await;
    let client = client("gzip", &format!("server: {address}"), "").await;
    let head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
    answers.send(head).expect("a server");
    // A member of its own for each event, and one that is flushed but goes on.
    answers.send(chunk(&gzip(b"one\n"))).expect("a server");
    let mut body = client.get(Verb::List, "/", JSON).await.expect("an answer").into_body();
    assert_eq!(body.chunk().await.expect("more").as_deref(), Ok(b"one\n".as_slice()));
    let mut member = GzEncoder::new(Vec::new(), Compression::default());
    member.write_all(b"two\n").expect("room");
    member.flush().expect("room");
    answers.send(chunk(member.get_ref())).expect("a server");
    assert_eq!(body.chunk().await.expect("more").as_deref(), Ok(b"two\n".as_slice()));
    // The end of the answer within a member is an error.
    answers.send(b"0\r\n\r\n".to_vec()).expect("a server");
    assert!(body.chunk().await.expect("an error").is_err_and(|error| error.to_string().contains("gzip")));
}

#[tokio::test]
async fn unknown_encodings_garbage_and_cut_answers_are_errors() {
    let cases = [
        (ok("Content-Encoding: zstd\r\n", b"x"), "zstd"),
        (ok("Content-Encoding: gzip\r\n", b"no gzip"), "gzip"),
        (ok("Content-Encoding: gzip\r\n", &gzip(b"x")[..12]), "gzip"),
    ];
    for (answer, part) in cases {
        let (address, _heads, answers) = server().await;
        let client = client("garbage", &format!("server: {address}"), "").await;
        answers.send(answer).expect("a server");
        let error = match client.get(Verb::List, "/", JSON).await {
            Ok(answer) => all(answer.into_body()).await.expect_err(part),
            Err(error) => error,
        };
        let text = error.to_string();
        assert!(text.contains(part) && text.starts_with(client.server()) && !text.contains('\n'), "{text}");
    }
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_recognized() {
    let address = StdListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let direct = client("refused", &format!("server: {address}"), "").await;
    let error = direct.get(Verb::List, "/", JSON).await.err().expect("refused");
    assert_eq!((error.is_refused(), error.to_string()), (true, format!("http://{address}: connection refused")));
    let proxied = client("refused", &format!("server: 'https://h', proxy-url: 'http://{address}'"), "").await;
    let error = proxied.get(Verb::List, "/", JSON).await.err().expect("refused");
    assert!(error.is_refused() && error.to_string().contains(&format!("proxy {address}: ")), "{error}");
}

/// A TLS server whose certificate is for `api.example`, and a kubeconfig's cluster for it.
fn tls_server(name: &str, backend: SocketAddr) -> (TlsFront, SocketAddr, String) {
    let authority = Certified::new(&Profile::authority("ca"), None);
    let server = Profile { names: &["api.example"], ..Profile::leaf("server") };
    let server = Certified::new(&server, Some(&authority));
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let front = TlsFront::start(listener, server_context(&server, None, b"\x08http/1.1"), backend);
    let (ca, _) = authority.write(&std::env::temp_dir(), &format!("client-{name}-{}", std::process::id()));
    (front, address, format!("server: 'https://api.example:6443', certificate-authority: {}", ca.display()))
}

#[tokio::test]
async fn tls_goes_through_an_http_proxy_that_resolves_the_name() {
    let (backend, _heads, answers) = server().await;
    let (_front, target, cluster) = tls_server("connect", backend);
    let proxy = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = proxy.local_addr().expect("an address");
    let client = client("connect", &format!("{cluster}, proxy-url: 'http://me:pw@{address}'"), "").await;
    let asked = tokio::spawn(async move {
        let (mut stream, _) = proxy.accept().await.expect("a connection");
        let head = head(&mut stream).await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("a client");
        let mut target = TcpStream::connect(target).await.expect("a server");
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut target).await });
        head
    });
    answers.send(ok("", b"{}")).expect("a server");
    let answer = client.get(Verb::List, "/", JSON).await.expect("an answer");
    assert_eq!(all(answer.into_body()).await.as_deref(), Ok(b"{}".as_slice()));
    let head = asked.await.expect("a request");
    assert!(head.starts_with("CONNECT api.example:6443 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nProxy-Authorization: Basic bWU6cHc=\r\n"), "{head}");
}

#[tokio::test]
async fn plain_requests_to_an_http_proxy_have_the_whole_url() {
    let (proxy, mut heads, answers) = server().await;
    let client = client("absolute", &format!("server: 'http://api.example', proxy-url: 'http://{proxy}'"), "").await;
    answers.send(ok("", b"{}")).expect("a server");
    client.get(Verb::List, "/api/v1/nodes", JSON).await.expect("an answer");
    let head = heads.recv().await.expect("a request");
    assert!(head.starts_with("GET http://api.example/api/v1/nodes HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn silent_server_times_out_in_the_handshake() {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let client = client("silent", &format!("server: 'https://{address}', insecure-skip-tls-verify: true"), "").await;
    let request = client.get(Verb::List, "/", JSON);
    let error = tokio::time::timeout(std::time::Duration::from_secs(30), request).await.expect("a deadline of its own");
    let error = error.err().expect("no answer");
    assert!(matches!(error, RequestError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        // As Go's server.
        let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let client = client("plain", &format!("server: 'https://{address}', insecure-skip-tls-verify: true"), "").await;
    let error = client.get(Verb::List, "/", JSON).await.err().expect("no TLS");
    assert_eq!(error.to_string(), format!("https://{address}: the server does not speak TLS (is it http://?)"));
}
