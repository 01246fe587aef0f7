//! Which version of an object wins when it is in several files, after every edit.

use std::time::Duration;

use netfilter::IpFamily;
use proxier::mailbox::{Message, Receiver, mailbox};
use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::config::{KubeProxyConfiguration, validate};
use crate::health::Health;
use crate::source::{FamilySenders, Receivers};

struct Folder {
    path: PathBuf,
    files: ObjectFiles,
    changes: Receiver,
}

impl Folder {
    fn new(name: &str, texts: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("objects-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        for (file, text) in texts {
            std::fs::write(path.join(file), text).expect("written");
        }
        let settings = validate(KubeProxyConfiguration::default().with_defaults(), "node-a").expect("defaults");
        let ((sender, changes), (node, _)) = (mailbox(), unbounded_channel());
        let mut families = FamilySenders::default();
        families.insert(IpFamily::V4, sender);
        let health = Health::new(Duration::from_secs(30), true).into();
        let sink = Sink::new(&settings, Receivers { families, node, health, selected: None });
        let (files, _) = ObjectFiles::open(path.clone(), None, sink).expect("a folder");
        Self { path, files, changes }
    }

    fn write(&mut self, file: &str, text: &str) -> Vec<String> {
        std::fs::write(self.path.join(file), text).expect("written");
        self.update()
    }

    fn remove(&mut self, file: &str) -> Vec<String> {
        std::fs::remove_file(self.path.join(file)).expect("removed");
        self.update()
    }

    /// The Services that the proxier receives, with their addresses and how often each was delivered.
    fn update(&mut self) -> Vec<String> {
        self.files.update();
        let mut changes = Vec::new();
        while let Ok(mail) = self.changes.try_recv() {
            if let Message::Change(Change::Service(name, ports)) = mail.message {
                let address = ports.first().map_or("gone".to_owned(), |(_, port)| port.cluster_ip.to_string());
                changes.push(format!("{} {address} x{}", name.name, mail.events));
            }
        }
        changes
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn service(address: &str) -> String {
    format!("---\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: {address}, ports: [{{port: 80}}]}}\n")
}

#[test]
fn an_object_in_two_files_when_the_earlier_is_edited_is_never_the_earlier_ones() {
    let (first, last) = (service("10.96.0.11"), service("10.96.0.10"));
    let mut folder = Folder::new("edited", &[("dup.yaml", &first), ("web.yaml", &last)]);
    assert_eq!(folder.update(), ["web 10.96.0.10 x1"]);
    assert_eq!(folder.write("dup.yaml", &format!("{first}# x\n")), [""; 0]);
    assert_eq!(folder.write("dup.yaml", &service("10.96.0.12")), [""; 0]);
    assert_eq!(folder.write("web.yaml", &service("10.96.0.13")), ["web 10.96.0.13 x1"]);
    assert_eq!(folder.files.shared.values().map(Vec::len).collect::<Vec<_>>(), [2]);
}

#[test]
fn an_object_when_the_last_file_loses_it_is_the_earlier_files_and_then_gone() {
    let (first, last) = (service("10.96.0.11"), service("10.96.0.10"));
    let mut folder = Folder::new("lost", &[("a.yaml", &first), ("b.yaml", &last), ("c.yaml", &last)]);
    assert_eq!(folder.update(), ["web 10.96.0.10 x1"]);
    assert_eq!(folder.remove("c.yaml"), ["web 10.96.0.10 x1"], "another file has it");
    assert_eq!(folder.write("b.yaml", ""), ["web 10.96.0.11 x1"]);
    assert!(folder.files.shared.is_empty());
    assert_eq!(folder.remove("a.yaml"), ["web gone x1"]);
}

#[test]
fn an_object_twice_in_one_file_is_delivered_once() {
    let both = format!("{}{}", service("10.96.0.11"), service("10.96.0.10"));
    let mut folder = Folder::new("twice", &[("a.yaml", &both)]);
    assert_eq!(folder.update(), ["web 10.96.0.10 x1"]);
}

#[test]
fn a_slice_without_its_label_is_warned_about_once() {
    let slice = "---\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\n";
    let mut folder = Folder::new("unlabelled", &[("a.yaml", slice)]);
    folder.update();
    let logged = |folder: &Folder| folder.files.sink.logged.counts();
    assert_eq!(logged(&folder), [1]);
    // Delivered again with the same problem, then mended.
    folder.write("a.yaml", &format!("{slice}ports: []\n"));
    assert_eq!(logged(&folder), [1], "the problem that was logged is remembered");
    folder.write("a.yaml", &slice.replace("{name: a}", "{name: a, labels: {kubernetes.io/service-name: web}}"));
    assert_eq!(logged(&folder), [0_usize; 0]);
}
