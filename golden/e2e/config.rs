//! Tests of flags, configuration files and their messages, with the real binary.
//!
//! Each test has a node (a network namespace), or none where nothing touches the kernel. Requires root.

mod command_line;
mod pages;
mod updates;
mod write;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::node::{NAME, Node};
use golden::sample::{node, service, slice};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");

/// The head of every configuration.
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Runs the binary to its end without a namespace, for commands that change nothing.
fn output(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().expect("the binary can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A node and a folder of objects with a Service `web`; does not start the proxy.
struct World {
    node: Node,
}

impl World {
    fn new() -> Self {
        let node = Node::new(BINARY);
        std::fs::create_dir(node.dir().join("objects")).expect("a folder");
        let world = Self { node };
        world.set_endpoint("10.244.2.5");
        world
    }

    /// Sets the endpoint of `web`, also in a running proxy.
    fn set_endpoint(&self, pod: &str) {
        let objects = [self::node(NAME, "zone-a"), service("web", "10.96.0.10"), slice("web-1", "web", &[pod])];
        let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
        replace(&self.objects().join("all.yaml"), &text);
    }

    fn objects(&self) -> PathBuf {
        self.node.dir().join("objects")
    }

    /// Starts the proxy without waiting.
    fn start(&mut self, arguments: &[&str]) {
        let objects = format!("--objects={}", self.objects().display());
        let mut all = vec![&*objects];
        all.extend(arguments);
        self.node.start(&all);
    }

    /// Waits until `web` has this endpoint.
    #[track_caller]
    fn until_endpoint(&self, pod: &str) {
        self.node.until_endpoints("default/web:http", &[&format!("{pod}:8080")]);
    }
}

/// Replaces a file atomically.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).expect("a draft");
    std::fs::rename(draft, path).expect("put it in place");
}
