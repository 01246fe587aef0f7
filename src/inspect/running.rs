//! The configuration of the kube-proxy that runs on this node: from its page `/configz` and its command line.
//!
//! The page has what is in force, even where the file was edited since; the command line has what no file has. Files are
//! read as that process sees them, in its mount namespace.

use std::fs::File as OpenFile;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::cli::{self, CommandLine};
use crate::config::{self, KubeProxyConfiguration};

/// Where every kube-proxy serves its metrics, if nothing says otherwise.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// How long its page may take, from connecting to the last byte.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The largest page that is read.
const LARGEST: usize = 1 << 20;

/// A kube-proxy that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its configuration.
    pub file: KubeProxyConfiguration,
    /// The same in nftables mode: from its file or flags, as the page leaves out what other modes' sections say.
    pub in_nftables_mode: KubeProxyConfiguration,
    /// Its process, where it has one of its own.
    pub pid: Option<u32>,
    /// `--objects` and `--master` of its command line.
    pub objects: Option<PathBuf>,
    /// The API server's address of its command line.
    pub master: String,
    /// Where all that comes from.
    pub taken_from: String,
}

impl Running {
    /// The proxy with the first of these command lines, or one whose page is in the usual place. `None`: none runs.
    ///
    /// # Errors
    /// If one runs, and its configuration cannot be found out.
    pub fn find(processes: &[(u32, Vec<String>)]) -> Result<Option<Self>, String> {
        let Some((pid, words)) = processes.first() else {
            let Ok(page) = page(METRICS) else { return Ok(None) };
            let from = format!("http://{METRICS}/configz");
            let file = decoded(&page).map_err(|why| format!("{from}: {why}"))?;
            let in_nftables_mode = file.clone().in_nftables_mode();
            let (objects, master) = (None, String::new());
            return Ok(Some(Self { file, in_nftables_mode, pid: None, objects, master, taken_from: from }));
        };
        let of = format!("the command line of process {pid}");
        let line =
            cli::parse(words.clone()).map_err(|stop| format!("{of}: {}", stop.text.trim_end().replace('\n', "; ")))?;
        let from_file = as_seen_by(Some(*pid), || line.complete())?;
        let metrics =
            from_file.as_ref().ok().and_then(|from| config::validate(from.file.clone(), "node").ok()?.metrics);
        let at =
            metrics.map_or(METRICS, |at| if at.ip().is_unspecified() { (METRICS.ip(), at.port()).into() } else { at });
        let from_page = page(at).and_then(|page| decoded(&page));
        let (file, in_nftables_mode, taken_from) = match (from_page, from_file) {
            (Ok(file), Ok(from)) => (file, from.in_nftables_mode, format!("http://{at}/configz and {of}")),
            (Ok(file), Err(_)) => {
                let in_nftables_mode = file.clone().in_nftables_mode();
                (file, in_nftables_mode, format!("http://{at}/configz and {of}"))
            }
            (Err(_), Ok(from)) => (from.file, from.in_nftables_mode, of),
            (Err(why), Err(error)) => return Err(format!("{of}: {error}; http://{at}/configz: {why}")),
        };
        let CommandLine { flags, .. } = line;
        let (objects, master) = (flags.source.objects, flags.source.master);
        Ok(Some(Self { file, in_nftables_mode, pid: Some(*pid), objects, master, taken_from }))
    }
}

/// The body of its page with the configuration.
fn page(at: SocketAddr) -> Result<String, String> {
    body(at, "/configz")
}

/// The body of a page of a proxy that runs; `at`: where it serves metrics.
///
/// # Errors
/// If it does not answer in time, or with another status than 200.
pub fn body(at: SocketAddr, path: &str) -> Result<String, String> {
    let text = ask(at, path, Instant::now() + TIMEOUT).map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer of HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") { Ok(body.to_owned()) } else { Err(status.to_owned()) }
}

/// The answer to a request of HTTP/1.0, which no server sends in chunks. A server that sends byte by byte is given up at
/// the deadline too.
fn ask(at: SocketAddr, path: &str, deadline: Instant) -> io::Result<String> {
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let mut stream = TcpStream::connect_timeout(&at, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    // In one piece: `write!` would send each part of the text in a packet of its own.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 16384]);
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > LARGEST {
            return Err(io::Error::other(format!("more than {LARGEST} bytes")));
        }
    }
    String::from_utf8(answer).map_err(io::Error::other)
}

/// The configuration in the page.
fn decoded(page: &str) -> Result<KubeProxyConfiguration, String> {
    let document = page.find('{').zip(page.rfind('}')).and_then(|(from, to)| page.get(from..=to)).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(document).map_err(|error| error.to_string())?;
    let of_proxy = value.get("kubeproxy.config.k8s.io").ok_or("it has no kubeproxy.config.k8s.io")?;
    Ok(config::decode(&of_proxy.to_string())?.file)
}

/// Does some work on a thread that sees files as a process does: with its mounts, from its folder.
///
/// # Errors
/// If the process is gone, or its mount namespace cannot be entered.
pub fn as_seen_by<T: Send>(pid: Option<u32>, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let Some(pid) = pid else { return Ok(work()) };
    let enter = || -> std::io::Result<()> {
        let folder = OpenFile::open(format!("/proc/{pid}/cwd"))?;
        let mounts = OpenFile::open(format!("/proc/{pid}/ns/mnt"))?;
        // The folder is the thread's own from here on.
        unshare(CloneFlags::CLONE_FS)?;
        let own = std::fs::read_link("/proc/thread-self/ns/mnt")?;
        if std::fs::read_link(format!("/proc/{pid}/ns/mnt"))? != own {
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
        }
        Ok(nix::unistd::fchdir(folder)?)
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            enter().map_err(|error| format!("cannot see the files of process {pid}: {error}"))?;
            Ok(work())
        });
        done.join().unwrap_or_else(|_| Err("reading them panicked".to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server on a free port of this host that answers one request.
    fn server(answer: impl FnOnce(&mut TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("its address");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            // Closed with part of the request unread, the connection would be reset.
            let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
            while !request.ends_with(b"\r\n\r\n") {
                let count = stream.read(&mut buffer).expect("a request");
                assert_ne!(count, 0, "the request ended early: {}", String::from_utf8_lossy(&request));
                request.extend_from_slice(&buffer[..count]);
            }
            answer(&mut stream);
        });
        at
    }

    #[test]
    fn a_server_that_trickles_is_given_up_after_the_time_of_one_request() {
        let at = server(|stream| {
            while stream.write_all(b"H").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let started = Instant::now();
        let asked = ask(at, "/configz", started + Duration::from_millis(300));
        assert!(asked.is_err(), "{asked:?}");
        assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    }

    #[test]
    fn the_body_of_a_good_answer_is_read_and_another_status_is_an_error() {
        let at = server(|stream| stream.write_all(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"a\":1}").expect("sent"));
        assert_eq!(page(at).as_deref(), Ok("{\"a\":1}"));
        let at = server(|stream| stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n").expect("sent"));
        assert_eq!(page(at), Err("HTTP/1.0 404 Not Found".to_owned()));
    }
}
