//! The localhost proxy on real sockets of both families, in network namespaces of the tests' own.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use golden::netns::Netns;
use proxier::model::NamespacedName;
use socket2::SockRef;

use super::*;
use crate::metrics::Metrics;

const NODE_PORT: u16 = 30080;
const TIMEOUT: Duration = Duration::from_secs(20);
const LIMITS: LocalhostLimits = LocalhostLimits { sockets: 30, listeners: 10, pipes: 4 };

/// The proxy on a thread of the namespace, which applies reports and says how many listeners are open then.
struct Proxy {
    reports: mpsc::Sender<FamilyLocalhostPorts>,
    done: mpsc::Receiver<usize>,
    metrics: std::sync::Arc<Metrics>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// In the network namespace of the calling thread, which the new thread inherits.
    fn start(limits: LocalhostLimits) -> Self {
        let metrics = std::sync::Arc::new(Metrics::new("nftables").expect("metrics"));
        let (reports, received) = mpsc::channel::<FamilyLocalhostPorts>();
        let (say, done) = mpsc::channel();
        let proxy = LocalhostProxy::new(limits, metrics.localhost.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(proxy, received, say));
        });
        Self { reports, done, metrics, thread: Some(thread) }
    }

    /// Serves these node ports alone, by Service name. Returns the number of open listeners.
    fn serve(&self, family: IpFamily, ports: &[(&str, LocalhostPort)]) -> usize {
        let ports = ports.iter().map(|(service, port)| (name(service), Some(port.clone()))).collect();
        self.report(family, LocalhostPorts { all: true, ports })
    }

    fn report(&self, family: IpFamily, report: LocalhostPorts) -> usize {
        self.reports.send((family, report)).expect("the proxy runs");
        self.done.recv_timeout(TIMEOUT).expect("the proxy answers")
    }

    fn shows(&self, line: &str) -> bool {
        self.metrics.text().lines().any(|shown| shown == line)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.reports = mpsc::channel().0;
        self.thread.take().map(thread::JoinHandle::join);
    }
}

async fn serve(mut proxy: LocalhostProxy, reports: mpsc::Receiver<FamilyLocalhostPorts>, say: mpsc::Sender<usize>) {
    loop {
        match reports.try_recv() {
            Ok((family, report)) => {
                proxy.apply(family, report).await;
                let _ = say.send(proxy.listening(family));
            }
            Err(mpsc::TryRecvError::Disconnected) => return,
            Err(mpsc::TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

fn name(service: &str) -> ServicePortName {
    ServicePortName { service: NamespacedName::new("ns", service), port: "".into(), protocol: Protocol::Tcp }
}

fn port(node_port: u16, endpoints: &[SocketAddr]) -> LocalhostPort {
    LocalhostPort { node_port, endpoints: endpoints.into(), affinity: None }
}

/// Runs `test` in a namespace, once for each family.
fn in_each_family(test: impl Fn(IpFamily) + Send + Sync) {
    for family in IpFamily::ALL {
        Netns::new().enter(|| test(family));
    }
}

/// An endpoint that treats each connection with `with` on a thread of its own.
fn endpoint(family: IpFamily, with: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::new(family.localhost(), 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let with = std::sync::Arc::new(with);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let with = with.clone();
            thread::spawn(move || with(client));
        }
    });
    address
}

/// Sends back all it gets, and closes when its client does.
fn echo(mut client: TcpStream) {
    let mut from = client.try_clone().expect("a clone");
    let _ = io::copy(&mut from, &mut client);
    let _ = client.shutdown(Shutdown::Write);
}

fn connect(family: IpFamily) -> io::Result<TcpStream> {
    let address = SocketAddr::new(family.localhost(), NODE_PORT);
    let client = TcpStream::connect_timeout(&address, TIMEOUT)?;
    client.set_read_timeout(Some(TIMEOUT))?;
    Ok(client)
}

/// One line there and back.
fn talks(client: &mut TcpStream) -> io::Result<()> {
    client.write_all(b"hello\n")?;
    let mut answer = [0; 6];
    client.read_exact(&mut answer)?;
    assert_eq!(&answer, b"hello\n");
    Ok(())
}

/// Whether the connection ends, by an end of data or a reset, and not by the test's timeout.
fn ends(client: &mut TcpStream) -> bool {
    match client.read(&mut [0; 64]) {
        Ok(0) => true,
        Ok(_) => ends(client),
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_node_port_is_served_while_it_has_endpoints_and_its_connections_end_with_it() {
    in_each_family(|family| {
        let (proxy, echo) = (Proxy::start(LIMITS), endpoint(family, echo));
        assert_eq!(connect(family).expect_err("not served").kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(proxy.serve(family, &[("web", port(NODE_PORT, &[echo]))]), 1);
        let mut client = connect(family).expect("served");
        talks(&mut client).expect("an echo");
        let gauge =
            |count| format!("kubeproxy_nftables_localhost_nodeport_listeners{{ip_family=\"{family}\"}} {count}");
        assert!(proxy.shows(&gauge(1)), "{}", proxy.metrics.text());
        let gone = LocalhostPorts { all: false, ports: [(name("web"), None)].into() };
        assert_eq!(proxy.report(family, gone), 0);
        assert!(ends(&mut client), "closed with its node port");
        assert_eq!(connect(family).expect_err("not served").kind(), io::ErrorKind::ConnectionRefused);
        assert!(proxy.shows(&gauge(0)), "{}", proxy.metrics.text());
    });
}

#[test]
fn a_port_that_is_closed_may_be_opened_again_at_once() {
    in_each_family(|family| {
        let (proxy, echo) = (Proxy::start(LIMITS), endpoint(family, echo));
        let gone = || LocalhostPorts { all: true, ports: BTreeMap::new() };
        let back = || LocalhostPorts { all: true, ports: [(name("web"), Some(port(NODE_PORT, &[echo])))].into() };
        for report in [back(), gone(), back(), gone(), back()] {
            proxy.reports.send((family, report)).expect("the proxy runs");
        }
        let open: Vec<usize> = (0..5).map(|_| proxy.done.recv_timeout(TIMEOUT).expect("an answer")).collect();
        assert_eq!(open, [1, 0, 1, 0, 1]);
        talks(&mut connect(family).expect("served")).expect("an echo");
    });
}

#[test]
fn connections_end_with_the_proxy() {
    in_each_family(|family| {
        let (proxy, echo) = (Proxy::start(LIMITS), endpoint(family, echo));
        proxy.serve(family, &[("web", port(NODE_PORT, &[echo]))]);
        let mut client = connect(family).expect("served");
        talks(&mut client).expect("an echo");
        drop(proxy);
        assert!(ends(&mut client));
        assert!(connect(family).is_err());
    });
}

#[test]
fn a_side_that_has_closed_its_direction_still_gets_the_other() {
    in_each_family(|family| {
        // Answers only after its client has closed its direction, and then closes its own.
        let late = endpoint(family, |mut client| {
            let mut all = Vec::new();
            client.read_to_end(&mut all).expect("all of it");
            let _ = client.write_all(format!("got {}", all.len()).as_bytes());
        });
        // Closes its direction at once and reads on.
        let (heard, hears) = mpsc::channel();
        let early = endpoint(family, move |mut client| {
            client.write_all(b"bye").expect("written");
            client.shutdown(Shutdown::Write).expect("half-closed");
            let mut all = String::new();
            client.read_to_string(&mut all).expect("all of it");
            heard.send(all).expect("the test waits");
        });
        let proxy = Proxy::start(LIMITS);
        proxy.serve(family, &[("web", port(NODE_PORT, &[late]))]);
        let mut client = connect(family).expect("served");
        client.write_all(&[7; 100_000]).expect("written");
        client.shutdown(Shutdown::Write).expect("half-closed");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("the answer");
        assert_eq!(answer, "got 100000");

        proxy.serve(family, &[("web", port(NODE_PORT, &[early]))]);
        let mut client = connect(family).expect("served");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("the greeting and the end");
        client.write_all(b"still here").expect("written");
        drop(client);
        assert_eq!((&*answer, &*hears.recv_timeout(TIMEOUT).expect("heard")), ("bye", "still here"));
    });
}

/// Sends 32 MiB and back, more than any buffer holds. `pipes`: 0 copies through buffers.
fn moves_much(family: IpFamily, pipes: usize) {
    const SIZE: usize = 32 << 20;
    let pattern = |at: usize| u8::try_from(at * 31 % 251).expect("below 251");
    let proxy = Proxy::start(LocalhostLimits { pipes, ..LIMITS });
    proxy.serve(family, &[("web", port(NODE_PORT, &[endpoint(family, echo)]))]);
    let mut client = connect(family).expect("served");
    let mut sender = client.try_clone().expect("a clone");
    let sending = thread::spawn(move || {
        let all: Vec<u8> = (0..SIZE).map(pattern).collect();
        sender.write_all(&all).expect("written");
        sender.shutdown(Shutdown::Write).expect("half-closed");
    });
    let mut all = Vec::with_capacity(SIZE);
    // A slow reader: what is under way must wait in the proxy.
    thread::sleep(Duration::from_millis(300));
    client.read_to_end(&mut all).expect("the echo");
    sending.join().expect("sent");
    assert_eq!(all.len(), SIZE);
    assert!(all.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "bytes changed on their way");
}

#[test]
fn much_data_arrives_unchanged_through_pipes() {
    in_each_family(|family| moves_much(family, 4));
}

#[test]
fn much_data_arrives_unchanged_without_pipes() {
    in_each_family(|family| moves_much(family, 0));
}

#[test]
fn a_port_in_use_is_counted_and_served_when_it_is_free_and_the_others_are_served() {
    in_each_family(|family| {
        let echo = endpoint(family, echo);
        let proxy = Proxy::start(LIMITS);
        let taken = TcpListener::bind(SocketAddr::new(family.localhost(), 30081)).expect("free");
        let ports = [("web", port(NODE_PORT, &[echo])), ("taken", port(30081, &[echo]))];
        assert_eq!(proxy.serve(family, &ports), 1);
        talks(&mut connect(family).expect("served")).expect("an echo");
        let counter = "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total";
        assert!(proxy.shows(&format!("{counter}{{ip_family=\"{family}\"}} 1")), "{}", proxy.metrics.text());
        drop(taken);
        assert_eq!(proxy.serve(family, &ports), 2, "tried again with the next sync");
    });
}

#[test]
fn the_first_service_by_name_owns_a_node_port_and_then_the_next() {
    Netns::new().enter(|| {
        let says = |word: &'static str| {
            endpoint(IpFamily::V4, move |mut client| client.write_all(word.as_bytes()).expect("written"))
        };
        let answer = || {
            let mut answer = String::new();
            connect(IpFamily::V4).expect("served").read_to_string(&mut answer).expect("an answer");
            answer
        };
        let proxy = Proxy::start(LIMITS);
        let (a, b) = (port(NODE_PORT, &[says("a")]), port(NODE_PORT, &[says("b")]));
        assert_eq!(proxy.serve(IpFamily::V4, &[("b", b.clone())]), 1);
        assert_eq!(answer(), "b");
        assert_eq!(proxy.serve(IpFamily::V4, &[("a", a), ("b", b.clone())]), 1);
        assert_eq!(answer(), "a");
        assert_eq!(proxy.serve(IpFamily::V4, &[("b", b)]), 1);
        assert_eq!(answer(), "b");
    });
}

#[test]
fn a_client_of_an_endpoint_that_refuses_or_hangs_is_closed() {
    in_each_family(|family| {
        let refusing = {
            let listener = TcpListener::bind(SocketAddr::new(family.localhost(), 0)).expect("a port");
            listener.local_addr().expect("an address")
        };
        let proxy = Proxy::start(LIMITS);
        proxy.serve(family, &[("web", port(NODE_PORT, &[refusing]))]);
        assert!(ends(&mut connect(family).expect("accepted")));

        // A listening socket whose queue is full leaves connection requests unanswered.
        let hanging = TcpListener::bind(SocketAddr::new(family.localhost(), 0)).expect("a port");
        SockRef::from(&hanging).listen(0).expect("a queue of one");
        let address = hanging.local_addr().expect("an address");
        let _first = TcpStream::connect(address).expect("queued");
        proxy.serve(family, &[("web", port(NODE_PORT, &[address]))]);
        let began = std::time::Instant::now();
        let mut client = connect(family).expect("accepted");
        assert!(ends(&mut client));
        let took = began.elapsed();
        assert!(took > Duration::from_millis(4900) && took < Duration::from_secs(8), "{took:?}");
    });
}

#[test]
fn a_peer_that_vanishes_ends_the_connection_of_the_other() {
    in_each_family(|family| {
        let (closed, is_closed) = mpsc::channel();
        let endpoint = endpoint(family, move |mut client| {
            let mut word = [0; 5];
            client.read_exact(&mut word).expect("a word");
            if &word == b"leave" {
                // With this, closing resets the connection.
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("set");
            } else {
                client.write_all(&word).expect("written");
                closed.send(ends(&mut client)).expect("the test waits");
            }
        });
        let proxy = Proxy::start(LIMITS);
        proxy.serve(family, &[("web", port(NODE_PORT, &[endpoint]))]);
        let mut client = connect(family).expect("served");
        client.write_all(b"leave").expect("written");
        assert!(ends(&mut client), "the endpoint has vanished");

        let mut client = connect(family).expect("served");
        client.write_all(b"hello").expect("written");
        client.read_exact(&mut [0; 5]).expect("an echo");
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("set");
        drop(client);
        assert!(is_closed.recv_timeout(TIMEOUT).expect("noticed"), "the client has vanished");
    });
}

#[test]
fn beyond_the_limit_clients_wait_in_the_kernels_queue_until_a_connection_ends() {
    Netns::new().enter(|| {
        let echo = endpoint(IpFamily::V4, echo);
        // One socket for listeners alone, two connections.
        let proxy = Proxy::start(LocalhostLimits { sockets: 5, listeners: 1, ..LIMITS });
        let other = ("x", port(30081, &[echo]));
        assert_eq!(proxy.serve(IpFamily::V4, &[("web", port(NODE_PORT, &[echo])), other]), 1, "one listener");
        let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(IpFamily::V4).expect("queued")).collect();
        talks(&mut clients[0]).expect("an echo");
        talks(&mut clients[1]).expect("an echo");
        clients[3].set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        assert!(talks(&mut clients[3]).is_err(), "waits");
        assert_eq!(not_accepted(), 2, "they take no descriptor of the proxy");
        drop(clients.drain(..2));
        clients[1].set_read_timeout(Some(TIMEOUT)).expect("set");
        let mut answer = [0; 6];
        clients[1].read_exact(&mut answer).expect("the echo of what was written before");
        talks(&mut clients[0]).expect("an echo");
    });
}

/// The number of clients in the kernel's queue of the node port's socket, as ss(8) says (Recv-Q of a listener).
fn not_accepted() -> u32 {
    let said = std::process::Command::new("ss").args(["-Hltn", &format!("sport = {NODE_PORT}")]).output().expect("ss");
    let said = String::from_utf8(said.stdout).expect("text");
    said.split_whitespace().nth(1).and_then(|queued| queued.parse().ok()).unwrap_or_else(|| panic!("{said:?}"))
}

#[test]
fn a_new_node_port_is_served_while_connections_have_all_other_sockets() {
    Netns::new().enter(|| {
        let echo = endpoint(IpFamily::V4, echo);
        let proxy = Proxy::start(LocalhostLimits { sockets: 8, listeners: 4, ..LIMITS });
        let web = ("web", port(NODE_PORT, &[echo]));
        proxy.serve(IpFamily::V4, std::slice::from_ref(&web));
        let mut clients: Vec<TcpStream> = (0..5).map(|_| connect(IpFamily::V4).expect("queued")).collect();
        clients[..3].iter_mut().for_each(|client| talks(client).expect("an echo"));
        assert_eq!(proxy.serve(IpFamily::V4, &[web, ("x", port(30081, &[echo]))]), 2);
    });
}

#[test]
fn a_fast_transfer_leaves_others_their_turn() {
    Netns::new().enter(|| {
        let served = endpoint(IpFamily::V4, |mut client| {
            let mut kind = [0];
            match client.read_exact(&mut kind) {
                Ok(()) if kind == *b"b" => drop(io::copy(&mut client, &mut io::sink())),
                _ => echo(client),
            }
        });
        let proxy = Proxy::start(LIMITS);
        proxy.serve(IpFamily::V4, &[("web", port(NODE_PORT, &[served]))]);
        for _ in 0..4 {
            let mut bulk = connect(IpFamily::V4).expect("served");
            bulk.write_all(b"b").expect("written");
            thread::spawn(move || while bulk.write_all(&[0; 1 << 18]).is_ok() {});
        }
        let mut other = connect(IpFamily::V4).expect("served");
        other.write_all(b"e").expect("written");
        let begun = std::time::Instant::now();
        (0..20).for_each(|_| talks(&mut other).expect("an echo"));
        // Far more than turns of a busy machine take, and far less than transfers without an end.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        drop(proxy);
    });
}

#[test]
fn affinity_pins_all_clients_and_without_it_all_endpoints_are_used() {
    in_each_family(|family| {
        let says = |word: u8| endpoint(family, move |mut client| client.write_all(&[word]).expect("written"));
        let endpoints = [says(0), says(1), says(2)];
        let proxy = Proxy::start(LIMITS);
        let answers = || -> std::collections::BTreeSet<u8> {
            let one = |_| {
                let mut answer = [9];
                connect(family).expect("served").read_exact(&mut answer).expect("an answer");
                answer[0]
            };
            (0..40).map(one).collect()
        };
        proxy.serve(family, &[("web", port(NODE_PORT, &endpoints))]);
        assert_eq!(answers(), [0, 1, 2].into());
        let sticky = LocalhostPort { affinity: Some(Duration::from_secs(60)), ..port(NODE_PORT, &endpoints) };
        proxy.serve(family, &[("web", sticky)]);
        assert_eq!(answers().len(), 1);
    });
}
