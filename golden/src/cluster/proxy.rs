//! The proxy under test as a process on node-a.
//!
//! In: the binary, its configuration and the folder of objects. Out: a running proxy that says it is in sync; it can be
//! killed and started again, and its log can be read. It is gone when dropped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::wait::eventually;
use crate::netns::Netns;

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(20);

/// A running proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    child: Child,
}

impl Proxy {
    /// Starts it and waits until it says it is in sync. The log goes to the end of `DIR/proxy.log`.
    pub(super) fn start(binary: &Path, directory: &Path, node: &Netns) -> Self {
        let log_file = directory.join("proxy.log");
        let log = OpenOptions::new().create(true).append(true).open(&log_file).expect("a log file");
        let copy = log.try_clone().expect("a second handle of the log");
        let mut command = node.command(binary.to_str().expect("a path in UTF-8"));
        command.args(["--proxy-mode", "iptables", "--hostname-override", "node-a", "-v=2"]);
        command.args(["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"]);
        command.arg("--objects").arg(directory.join("objects"));
        command.arg("--config").arg(directory.join("config.yaml"));
        // Namespaces share the default lock file: tests that run at once would wait for each other.
        command.env("XTABLES_LOCKFILE", directory.join("xtables.lock"));
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let mut proxy = Self { child };
        eventually("the proxy says it is in sync", START, || {
            if let Ok(Some(status)) = proxy.child.try_wait() {
                panic!("the proxy ended: {status}\n{}", std::fs::read_to_string(&log_file).unwrap_or_default());
            }
            node.enter(|| healthy().unwrap_or(false))
        });
        proxy
    }
}

impl Drop for Proxy {
    /// SIGKILL: whatever a proxy does when it is killed, the rules must be fit for it.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn healthy() -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], 10256)), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}

/// Replaces a file in one step, as `kubectl` users' tools and editors do: no reader sees half of it.
pub(super) fn replace(file: &Path, text: &str) {
    // Outside the watched folder, or the proxy would read it too.
    let draft = file.parent().and_then(Path::parent).expect("a folder in the cluster's folder").join("draft");
    File::create(&draft).and_then(|mut to| to.write_all(text.as_bytes())).expect("write the draft");
    std::fs::rename(&draft, file).expect("rename the draft");
}
