//! Tests of `--objects`: edits, invalid objects and invalid settings, with the real binary.
//!
//! Each test has a node (a network namespace) and a folder. Requires root.

mod bad;
mod edits;
mod file_systems;
mod settings;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use golden::node::{NAME, Node};
use golden::sample::{node, service, slice};
use serde_json::Value;

/// How soon an edit has to be in the rules.
const PROMPT: Duration = Duration::from_secs(1);

/// A node and a folder of objects.
struct World {
    node: Node,
    folder: PathBuf,
}

impl World {
    /// The Node and a Service `web` at 10.244.2.5 in the file `base.yaml`; no proxy yet.
    fn new() -> Self {
        let node = Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
        let folder = node.dir().join("objects");
        std::fs::create_dir(&folder).expect("a folder");
        let world = Self { node, folder };
        world.write("base.yaml", &[self::node(NAME, "zone-a"), service("web", "10.96.0.10")]);
        world.write("web.yaml", &[slice("web-1", "web", &["10.244.2.5"])]);
        world
    }

    fn start(&mut self) {
        let folder = self.folder.to_string_lossy().into_owned();
        self.node.start(&["--objects", &folder, "--iptables-min-sync-period=0s"]);
    }

    /// The same, and the proxy has programmed `web`.
    fn running() -> Self {
        let mut world = Self::new();
        world.start();
        world.leads("web", &["10.244.2.5"]);
        world
    }

    /// Replaces a file of the folder at once.
    fn write(&self, name: &str, objects: &[Value]) {
        self.write_text(name, &text(objects));
    }

    /// Replaces a file of the folder at once.
    fn write_text(&self, name: &str, text: &str) {
        let draft = self.node.dir().join("draft");
        std::fs::write(&draft, text).expect("a draft");
        std::fs::rename(draft, self.folder.join(name)).expect("put it in place");
    }

    /// Waits until the rules send a sample Service to these pods.
    #[track_caller]
    fn leads(&self, service: &str, pods: &[&str]) {
        let wanted: Vec<String> = pods.iter().map(|pod| format!("{pod}:8080")).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        self.node.until_endpoints(&format!("default/{service}:http"), &wanted);
    }

    /// Proves that edits still count: another pod appears behind `web`, and in time.
    #[track_caller]
    fn works(&self, pod: &str) {
        let start = Instant::now();
        self.write("web.yaml", &[slice("web-1", "web", &[pod])]);
        self.leads("web", &[pod]);
        // The goal is PROMPT; tests run in parallel on machines of any speed.
        assert!(start.elapsed() < PROMPT * 3, "an edit took {:?}", start.elapsed());
    }
}

/// Objects as the documents of a file.
fn text(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object:#}\n")).collect()
}
