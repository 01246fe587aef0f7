//! A kube-proxy binary as a child process in a network namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::case::Mode;
use crate::netns::Netns;

const HEALTH_PORT: u16 = 10256;
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A running proxy, killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    log: PathBuf,
}

impl Proxy {
    /// Starts `binary` in `netns` with the files `config.yaml` and `objects/` of the folder `dir`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(netns: &Netns, binary: &Path, dir: &Path, env: &[(&str, PathBuf)]) -> Self {
        let path = |name| dir.join(name).to_string_lossy().into_owned();
        let arguments = ["--config", &path("config.yaml"), "--objects", &path("objects"), "-v=2"];
        Self::start_with(netns, binary, &arguments, dir, env)
    }

    /// Starts `binary` in `netns` with these arguments; the log is written to the folder `dir`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_with(netns: &Netns, binary: &Path, arguments: &[&str], dir: &Path, env: &[(&str, PathBuf)]) -> Self {
        let log = dir.join("proxy.log");
        let out = File::create(&log).expect("a log file");
        // `IPTABLES_BACKEND=programs` runs every test with the iptables programs.
        let backend = std::env::var("IPTABLES_BACKEND").map(|name| format!("--iptables-backend={name}"));
        let child = netns
            .command(&binary.to_string_lossy())
            .args(arguments)
            .args(backend)
            .envs(env.iter().map(|(key, value)| (*key, value.as_os_str())))
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        Self { child, log }
    }

    /// The exit status and last log lines; `None` while it is running.
    pub fn exited(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("the proxy ended ({status}); its log:\n{}", self.log_tail(20)))
    }

    /// The last log lines.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Sends SIGTERM and waits for the exit.
    ///
    /// # Errors
    /// If it has exited already, or does not exit in time.
    pub fn stop(mut self) -> Result<(), String> {
        if let Some(end) = self.exited() {
            return Err(end);
        }
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| format!("SIGTERM: {e}"))?;
        let asked = Instant::now();
        while self.exited().is_none() {
            if asked.elapsed() > STOP_LIMIT {
                return Err(format!("the proxy still runs {STOP_LIMIT:?} after SIGTERM"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a proxy in `netns` answers `/healthz` with 200.
#[must_use]
pub fn healthy(netns: &Netns) -> bool {
    netns.enter(|| healthz().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200")))
}

fn healthz() -> std::io::Result<String> {
    let limit = Duration::from_secs(2);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The configuration of a recorded case: the runner's defaults with the case's fields.
///
/// # Panics
/// If the case's configuration is not YAML.
#[must_use]
pub fn config(mode: Mode, case: &str) -> Value {
    let mut own: Value = serde_saphyr::from_str(case).unwrap_or_else(|e| panic!("config.yaml: {e}"));
    if let Some(fields) = own.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode.to_string(),
        "hostnameOverride": "node-a",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "1ms"},
        "nftables": {"minSyncPeriod": "1ms"},
        "ipvs": {"minSyncPeriod": "0s"},
        "healthzBindAddress": format!("0.0.0.0:{HEALTH_PORT}"),
        "metricsBindAddress": "127.0.0.1:10249",
    });
    merge(&mut config, own);
    config
}

/// Merges `over` into `base`: maps by field, everything else as a whole.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_overrides_field_by_field() {
        let own =
            "kind: X\nconntrack: {tcpBeLiberal: true}\niptables: {minSyncPeriod: 2s}\nnodePortAddresses: ['::/0']\n";
        let config = config(Mode::Iptables, own);
        assert_eq!(config["kind"], "KubeProxyConfiguration");
        assert_eq!(config["mode"], "iptables");
        assert_eq!(config["conntrack"]["min"], 0);
        assert_eq!(config["conntrack"]["tcpBeLiberal"], true);
        assert_eq!(config["iptables"]["minSyncPeriod"], "2s");
        assert_eq!(config["nodePortAddresses"], json!(["::/0"]));
    }
}
