//! The real binary and what it is told: flags, configuration files, what it says about them.
//!
//! In: the `kube-proxy` binary, root. Out: exit codes, texts, written files, the end when a configuration changes.
//! Each test has a node (a network namespace) or no namespace at all, where nothing touches the kernel.

mod command_line;
mod pages;
mod updates;
mod write;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::node::{NAME, Node};
use golden::sample::{node, service, slice};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");

/// The beginning of every configuration.
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Runs it to its end, without a namespace: only with what ends before anything is done.
fn output(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().expect("the binary can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A node and a folder of objects with a Service `web`; no proxy yet.
struct World {
    node: Node,
}

impl World {
    fn new() -> Self {
        let node = Node::new(BINARY);
        std::fs::create_dir(node.dir().join("objects")).expect("a folder");
        let world = Self { node };
        world.leads_to("10.244.2.5");
        world
    }

    /// Has `web` lead to a pod, which the proxy learns if it runs.
    fn leads_to(&self, pod: &str) {
        let objects = [self::node(NAME, "zone-a"), service("web", "10.96.0.10"), slice("web-1", "web", &[pod])];
        let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
        replace(&self.objects().join("all.yaml"), &text);
    }

    fn objects(&self) -> PathBuf {
        self.node.dir().join("objects")
    }

    /// Starts the proxy; whether it works is another question.
    fn start(&mut self, arguments: &[&str]) {
        let objects = format!("--objects={}", self.objects().display());
        let mut all = vec![&*objects];
        all.extend(arguments);
        self.node.start(&all);
    }

    /// Waits until `web` leads to this pod.
    #[track_caller]
    fn until_leads(&self, pod: &str) {
        self.node.until_leads("default/web:http", &[&format!("{pod}:8080")]);
    }
}

/// Puts a file in the place of another at once.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).expect("a draft");
    std::fs::rename(draft, path).expect("put it in place");
}
