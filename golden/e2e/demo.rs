//! Tests of `kube-proxy demo`: its output, its end, and that it leaves nothing behind.
//!
//! A network namespace takes the place of the host.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use golden::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);

/// A host with rules and an empty temporary folder.
struct Host {
    netns: Netns,
    folder: PathBuf,
}

impl Host {
    fn new(name: &str) -> Self {
        let netns = Netns::new();
        netns.run("ip link add dummy0 type veth peer name dummy1");
        for tool in ["iptables", "ip6tables"] {
            netns.run(&format!("{tool} -w -t nat -N KUBE-SERVICES"));
            netns.run(&format!("{tool} -w -t nat -A PREROUTING -j KUBE-SERVICES"));
        }
        let folder = std::env::temp_dir().join(format!("demo-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("tmp")).expect("a folder");
        Self { netns, folder }
    }

    fn tmp(&self) -> PathBuf {
        self.folder.join("tmp")
    }

    fn demo(&self) -> Command {
        let mut command = self.netns.command(env!("CARGO_BIN_EXE_kube-proxy"));
        command.arg("demo").env("TMPDIR", self.tmp()).env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }

    /// The state that the demo must not change.
    fn state(&self) -> Vec<String> {
        let rules = |tool: &str| {
            let saved = self.netns.run(tool);
            saved.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect::<String>()
        };
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let tmp = self.tmp().display().to_string();
        let ours: String = mounts.lines().filter(|line| line.contains(&tmp)).collect();
        let files: Vec<PathBuf> =
            std::fs::read_dir(self.tmp()).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
        let sysctls = self.netns.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/netfilter/nf_conntrack_max");
        let links = self.netns.run("ip -o link");
        let named = self.netns.run("ip netns list");
        vec![rules("iptables-save"), rules("ip6tables-save"), links, named, sysctls, ours, format!("{files:?}")]
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn threads_namespaces(process: &Path) -> BTreeSet<PathBuf> {
    let tasks = std::fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| std::fs::read_link(task.path().join("ns/net")).ok()).collect()
}

/// The network namespaces of all processes on this machine.
fn all_namespaces() -> BTreeSet<PathBuf> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes.flat_map(|process| threads_namespaces(&process.path())).collect()
}

/// Runs the demo until it prints `until`, then signals it; returns its exit status and last output.
fn interrupted(host: &Host, until: &str, signal: Signal) -> (ExitStatus, String) {
    let mut child = host.demo().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    assert!(lines.any(|line| line.expect("text").contains(until)), "the demo ended without a word of {until:?}");
    let pid = i32::try_from(child.id()).expect("a pid");
    let own = threads_namespaces(&PathBuf::from(format!("/proc/{pid}")));
    assert!(own.len() > 8, "a namespace for each machine: {own:?}");
    let asked = Instant::now();
    kill(Pid::from_raw(pid), signal).expect("a signal");
    let status = wait(&mut child);
    assert!(asked.elapsed() < LIMIT, "it took {:?} to end", asked.elapsed());
    // A tool that it started exits by itself.
    while !own.is_disjoint(&all_namespaces()) {
        assert!(asked.elapsed() < LIMIT, "a namespace is still in use");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
    (status, stderr)
}

fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        assert!(begun.elapsed() < LIMIT, "the demo does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn demo_prints_every_claim_and_leaves_the_host_alone() {
    let host = Host::new("story");
    let before = host.state();
    let output = host.demo().output().expect("the program");
    let (text, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}\n{log}", output.status);
    assert_eq!(log, "");
    for telling in [
        "-A KUBE-SERVICES -d 10.96.0.80/32 ",
        "-j DNAT --to-destination 10.244.1.11:8080",
        "300 connections from client to the cluster IP: 10.96.0.80:80",
        "connections from client to the cluster IP: [fd00:96::80]:80",
        "300 connections from outside to the node port: 192.168.50.2:30080",
        "web-2 got its last connection",
        "none failed",
        "each client stayed with one pod",
        "no other client moved",
    ] {
        assert!(text.contains(telling), "{telling:?} is missing in:\n{text}");
    }
    assert!(text.ends_with("\nAll as it should be.\n"), "{text}");
    assert!(!text.contains('\x1b') && !text.contains("NOT SO"), "{text}");
    assert_eq!(host.state(), before);
}

#[test]
fn ctrl_c_ends_the_demo_with_130_and_leaves_nothing() {
    let host = Host::new("interrupt");
    let before = host.state();
    let (status, stderr) = interrupted(&host, "before ", Signal::SIGINT);
    assert_eq!(status.code(), Some(130), "{status}: {stderr}");
    assert!(stderr.contains("nothing is left behind") && stderr.lines().count() == 2, "{stderr}");
    assert_eq!(host.state(), before);
}

#[test]
fn killed_demo_leaves_nothing() {
    let host = Host::new("kill");
    let before = host.state();
    let (status, _) = interrupted(&host, "before ", Signal::SIGKILL);
    assert_eq!(status.signal(), Some(9));
    assert_eq!(host.state(), before);
}

#[test]
fn failed_claim_is_reported_with_exit_code_1() {
    let host = Host::new("wrong");
    // An iptables-restore that assigns nearly all traffic to the first endpoint.
    let tools = host.folder.join("bin");
    std::fs::create_dir(&tools).expect("a folder");
    let real = host.netns.run("which iptables-restore");
    let script = format!("#!/bin/sh\nsed 's/--probability 0.333[0-9]*/--probability 0.95/' | {} \"$@\"\n", real.trim());
    std::fs::write(tools.join("iptables-restore"), script).expect("a script");
    let rights = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(tools.join("iptables-restore"), rights).expect("rights");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("a PATH"));
    let output = host.demo().env("PATH", path).output().expect("the program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("NOT SO: all were answered") && text.contains("\nNot as it should be."), "{text}");
    assert!(!text.contains("All as it should be"), "{text}");
}

/// A root directory that is not a mount point, with the host's programs in it; `mount` runs before `chroot`.
fn demo_in_chroot(host: &Host, mount: &str) -> Output {
    let script = format!(
        "root={root}; mkdir -p $root/dev $root/proc $root/tmp; touch $root/kube-proxy
        for name in bin etc lib lib64 sbin usr; do
          if [ -L /$name ]; then cp -fP /$name $root/; elif [ -d /$name ]; then mkdir -p $root/$name; fi
        done
        {mount}
        for name in bin dev etc lib lib64 proc sbin usr; do [ -L /$name ] || mount --rbind /$name $root/$name; done
        mount --bind {binary} $root/kube-proxy
        TMPDIR=/tmp exec chroot $root /kube-proxy demo",
        root = host.folder.join("root").display(),
        binary = env!("CARGO_BIN_EXE_kube-proxy"),
    );
    // The mounts end with this mount namespace.
    let unshare = ["--mount", "--propagation", "private", "sh", "-ec", &script];
    host.netns.command("unshare").args(unshare).output().expect("unshare(1)")
}

#[test]
fn chroot_without_a_mount_point_is_named_and_the_hint_works() {
    let host = Host::new("chroot");
    let refused = demo_in_chroot(&host, "");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("/ is not a mount point") && !text.contains("run as root"), "{text}");
    let advised = demo_in_chroot(&host, "mount --bind $root $root");
    let text = String::from_utf8_lossy(&advised.stdout);
    // The demo's claims about time may fail on a busy machine.
    assert!(text.contains("later the rules are there"), "{text}{}", String::from_utf8_lossy(&advised.stderr));
}
