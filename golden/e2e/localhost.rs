//! Localhost node ports of nftables mode at scale, with the real binary in a network namespace.
//!
//! `KUBE_PROXY=PATH` tests another binary, `NODE_PORTS=NUMBER` other numbers of node ports; `--nocapture` shows the figures.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use golden::node::{NAME, Node};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

const FIRST: u16 = 20_000;
const CONNECTIONS: usize = 10_000;
/// Enough for the proxy's sockets: one for each node port and family, two for each connection.
const DESCRIPTORS: u64 = 100_000;
/// A second address of `lo`: an endpoint cannot have a loopback address.
const ENDPOINTS: [&str; 2] = ["10.244.0.5", "fd00:10:244::5"];
const TARGET: u16 = 8080;
const MEBIBYTE: usize = 1 << 20;

/// The number of node ports.
fn node_ports() -> u16 {
    std::env::var("NODE_PORTS").map_or(5_000, |number| number.parse().expect("NODE_PORTS is a number"))
}

fn objects() -> String {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"},
                                 {"type": "InternalIP", "address": "fd00::1"}]}});
    let mut all: Vec<Value> = vec![node];
    for number in 0..node_ports() {
        let (name, high, low) = (format!("svc-{number}"), number / 250, number % 250 + 1);
        let ips = [format!("10.96.{high}.{low}"), format!("fd00:10:96::{number:x}")];
        all.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
            "spec": {"type": "NodePort", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"],
                     "ports": [{"name": "tcp", "protocol": "TCP", "port": 80, "nodePort": FIRST + number}]}}));
        for (family, address) in ["IPv4", "IPv6"].into_iter().zip(ENDPOINTS) {
            all.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"namespace": "default", "name": format!("{name}-{family}").to_lowercase(),
                             "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "tcp", "protocol": "TCP", "port": TARGET}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]}));
        }
    }
    all.iter().map(|object| format!("---\n{object}\n")).collect()
}

/// Answers `?` with `!`, and reads anything else to its end.
fn serve(address: &str) {
    let listener = TcpListener::bind((address, TARGET)).expect("an address of lo");
    socket2::SockRef::from(&listener).listen(4096).expect("a longer queue");
    let idle = Arc::new(Mutex::new(Vec::new()));
    let open = idle.clone();
    thread::spawn(move || {
        loop {
            // A proxy cannot tell a client that is gone from one that reads on, until the endpoint closes too.
            open.lock().expect("no panic").retain_mut(|client: &mut TcpStream| {
                client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            });
            thread::sleep(Duration::from_millis(50));
        }
    });
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut byte = [0];
            client.read_exact(&mut byte).expect("a byte");
            if byte == *b"?" {
                client.write_all(b"!").expect("written");
                client.set_nonblocking(true).expect("set");
                idle.lock().expect("no panic").push(client);
            } else {
                thread::spawn(move || drain(client));
            }
        }
    });
}

fn drain(mut client: TcpStream) {
    let mut buffer = vec![0; MEBIBYTE];
    while client.read(&mut buffer).is_ok_and(|count| count > 0) {}
    let _ = client.write_all(b".");
}

fn asks(to: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    client.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    client.write_all(b"?").expect("written");
    let mut answer = [0];
    client.read_exact(&mut answer).unwrap_or_else(|error| panic!("{to}: {error}"));
    client
}

/// MiB per second to an address.
fn throughput(to: SocketAddr) -> f64 {
    const SIZE: usize = 1024;
    let mut client = TcpStream::connect(to).expect("served");
    let chunk = vec![b'x'; MEBIBYTE];
    let began = Instant::now();
    for _ in 0..SIZE {
        client.write_all(&chunk).expect("written");
    }
    client.shutdown(std::net::Shutdown::Write).expect("half-closed");
    client.read_exact(&mut [0]).expect("all has arrived");
    SIZE as f64 / began.elapsed().as_secs_f64()
}

/// A field of /proc/PID/status, in KiB.
fn memory(node: &Node, field: &str) -> f64 {
    let pid = node.pid().expect("running");
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

/// How many connections fit: fewer than wanted where the limit on open files cannot be raised (CAP_SYS_RESOURCE).
fn connections() -> usize {
    if setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_ok() {
        return CONNECTIONS;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the hard limit");
    // A tenth of the rest is left to health checks, and some for everything else.
    let sockets = (usize::try_from(hard).expect("a limit") - 728) / 10 * 9 - 512;
    let fit = (sockets - 2 * usize::from(node_ports())) / 2;
    println!("RLIMIT_NOFILE is {hard} and cannot be raised: {fit} connections instead of {CONNECTIONS}");
    assert!(fit > 1000, "RLIMIT_NOFILE {hard} is too low for this test");
    fit.min(CONNECTIONS)
}

fn descriptors(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid().expect("running"))).expect("a process").count()
}

#[test]
fn five_thousand_localhost_node_ports_and_ten_thousand_idle_connections_are_served() {
    let connections = connections();
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_kube-proxy"));
    let mut node = Node::new(std::env::var_os("KUBE_PROXY").map_or_else(built, PathBuf::from));
    node.netns().enter(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "30000 60999").expect("set"));
    node.netns().run("ip address add 10.244.0.5/32 dev lo");
    node.netns().run("ip address add fd00:10:244::5/128 dev lo nodad");
    let folder = node.dir().join("objects");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("all.yaml"), objects()).expect("written");
    let began = Instant::now();
    let gate = "--feature-gates=KubeProxyNFTablesLocalhostNodePorts=true";
    let folder = folder.to_string_lossy().into_owned();
    let flags = ["--proxy-mode=nftables", "--nodeport-addresses=primary,localhost", gate, "--objects", &folder];
    node.start(&flags);
    let listeners = "kubeproxy_nftables_localhost_nodeport_listeners";
    let wanted = f64::from(2 * node_ports());
    node.until("all node ports are served", || node.page("/metrics").is_some() && node.metric(listeners) == wanted);
    let (start, held) = (began.elapsed(), descriptors(&node));
    let (rss, before) = (memory(&node, "VmRSS"), descriptors(&node));
    println!("{wanted} listeners after {start:.1?}: {held} descriptors, VmRSS {rss} KiB");
    let loopbacks = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    node.netns().enter(|| {
        ENDPOINTS.into_iter().for_each(serve);
        for number in 0..node_ports() {
            loopbacks.into_iter().for_each(|ip| drop(asks(SocketAddr::new(ip, FIRST + number))));
        }
        let idle: Vec<TcpStream> = (0..connections)
            .map(|number| asks(SocketAddr::new(loopbacks[number % 2], FIRST + (number % 50) as u16)))
            .collect();
        let (full, open) = (memory(&node, "VmRSS"), descriptors(&node));
        let each = (full - rss) * 1024.0 / connections as f64;
        println!("{connections} idle connections: {open} descriptors, VmRSS {full} KiB, {each:.0} bytes each");
        assert!(open <= before + 2 * connections + 40, "an idle connection holds its two sockets only: {open}");
        assert!(each < 8192.0, "{each} bytes for each idle connection");
        drop(idle);
        let freed = || descriptors(&node) <= before + 40;
        node.until("the sockets of closed connections are closed", freed);
        for (ip, endpoint) in loopbacks.into_iter().zip(ENDPOINTS) {
            let direct = SocketAddr::new(endpoint.parse().expect("an address"), TARGET);
            let through = SocketAddr::new(ip, FIRST);
            let speeds: Vec<[f64; 2]> = (0..3).map(|_| [throughput(direct), throughput(through)]).collect();
            for [plain, proxied] in speeds {
                println!("{ip}: plain {plain:.0} MiB/s, proxied {proxied:.0} MiB/s, ratio {:.2}", proxied / plain);
            }
        }
    });
    let (text, pid) = (node.log(), node.pid().expect("running"));
    assert!(!text.contains("Failed to listen"), "{text}");
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process").count();
    println!("{threads} threads, VmRSS {} KiB after all", memory(&node, "VmRSS"));
    assert!(threads < 20, "{threads} threads");
}
