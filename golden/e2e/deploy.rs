//! Tests that `deploy/` equals kubeadm's layout, and that the program works with exactly the granted permissions.
//!
//! Compares deploy/*.yaml with golden/kubeadm/cluster.yaml and deploy/kubeadm/daemonset.yaml. Needs root and no
//! cluster.

use std::collections::BTreeSet;
use std::path::Path;

use golden::apiserver::{ApiServer, Request};
use golden::flavour::{Flavour, HINT};
use golden::node::{NAME, Node};
use golden::sample::{node, service, slice};
use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Where the files of the ConfigMap are in a container, and those of the service account.
const CONFIG: &str = "/var/lib/kube-proxy";
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const CONTAINER: &str = "/spec/template/spec/containers/0";

fn documents(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

fn document(path: &str) -> Value {
    documents(path).pop().unwrap_or_else(|| panic!("{path} is empty"))
}

/// Takes a field out of an object.
fn take(object: &mut Value, parent: &str, field: &str) -> Value {
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
    parent.and_then(|parent| parent.remove(field)).unwrap_or_default()
}

#[test]
fn the_daemon_set_is_kubeadms_but_for_rights_and_image() {
    let (mut ours, mut theirs) = (document("deploy/daemonset.yaml"), document("deploy/kubeadm/daemonset.yaml"));
    let mut init = take(&mut ours, "/spec/template/spec", "initContainers")[0].take();
    let image = take(&mut ours, CONTAINER, "image");
    take(&mut theirs, CONTAINER, "image");
    let rights = take(&mut ours, CONTAINER, "securityContext");
    assert_eq!(take(&mut theirs, CONTAINER, "securityContext"), json!({ "privileged": true }));
    assert_eq!(ours, theirs);
    let arguments = std::fs::read_to_string(Path::new(ROOT).join("golden/kubeadm/arguments.txt")).expect("arguments");
    assert_eq!(ours.pointer(CONTAINER).expect("a container")["command"], json!(arguments.lines().collect::<Vec<_>>()));
    assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!((&rights["readOnlyRootFilesystem"], &rights["allowPrivilegeEscalation"]), (&json!(true), &json!(false)));

    // The init container differs in its name, its rights, and in one argument.
    let mut container = ours.pointer(CONTAINER).expect("a container").clone();
    container["command"].as_array_mut().expect("a command").push(json!("--init-only"));
    container["name"] = json!("kube-proxy-init");
    assert_eq!(take(&mut init, "", "image"), image);
    take(&mut init, "", "securityContext");
    assert_eq!(init, container);
}

#[test]
fn names_and_rights_in_the_cluster_are_kubeadms() {
    let ours = [documents("deploy/rbac.yaml"), documents("deploy/configmap.yaml")].concat();
    let theirs = documents("golden/kubeadm/cluster.yaml");
    // Every API server has it.
    let theirs: Vec<Value> = theirs.into_iter().filter(|object| object["kind"] != "ClusterRole").collect();
    // Files' contents are the cluster's own, their names are not.
    let named = |mut object: Value| {
        for content in object.get_mut("data").and_then(Value::as_object_mut).into_iter().flat_map(|o| o.values_mut()) {
            *content = json!("");
        }
        object
    };
    assert_eq!(ours.into_iter().map(named).collect::<Vec<_>>(), theirs);
}

#[test]
fn kustomizations_refer_to_existing_files() {
    for folder in ["deploy", "deploy/kubeadm"] {
        let kustomization = document(&format!("{folder}/kustomization.yaml"));
        let resources = kustomization["resources"].as_array().expect("resources");
        for file in resources {
            documents(&format!("{folder}/{}", file.as_str().expect("a file")));
        }
    }
    // The swapped image is the one that the other DaemonSet has.
    let swap = &document("deploy/kubeadm/kustomization.yaml")["images"][0];
    let replaced = document("deploy/kubeadm/daemonset.yaml");
    assert_eq!(replaced.pointer(CONTAINER).expect("a container")["image"], swap["name"]);
    let image = format!("{}:{}", swap["newName"].as_str().expect("a name"), swap["newTag"].as_str().expect("a tag"));
    assert_eq!(document("deploy/daemonset.yaml").pointer(CONTAINER).expect("a container")["image"], image);
    assert_eq!(swap["newTag"], format!("v{}", env!("CARGO_PKG_VERSION")));
}

struct World {
    node: Node,
    api: ApiServer,
    /// What starts the proxy, with its own arguments.
    starter: Vec<String>,
}

impl World {
    /// A node with the files of the ConfigMap, moved into its folder and made for its API server.
    fn new() -> Self {
        let node = Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
        let api = node.api_server();
        api.require_token(Some("of the service account"));
        api.apply(self::node(NAME, "zone-a"));
        let mut web = service("web", "10.96.0.10");
        let mut pods = slice("web-1", "web", &["10.244.2.5"]);
        // UDP, so that conntrack is looked at.
        for ports in [&mut web["spec"]["ports"], &mut pods["ports"]] {
            ports[0]["protocol"] = json!("UDP");
        }
        api.apply(web);
        api.apply(pods);
        std::fs::write(node.dir().join("token"), "of the service account\n").expect("a token");
        let world = Self { node, api, starter: Vec::new() };
        let folder = world.node.dir().to_string_lossy().into_owned();
        world.write_files(&[(CONFIG, &folder), (SERVICE_ACCOUNT, &folder)]);
        world
    }

    /// Writes the files of the ConfigMap, with these parts replaced, into the node's folder.
    fn write_files(&self, replaced: &[(&str, &str)]) {
        let files = document("deploy/configmap.yaml");
        for (name, content) in files["data"].as_object().expect("files") {
            // The test's API server has no certificate.
            let lines = content.as_str().expect("text").lines().filter(|line| !line.contains("certificate-authority:"));
            let content: String = lines.flat_map(|line| [line, "\n"]).collect();
            let content = content.replace("https://control-plane.example:6443", &self.api.url());
            let mut content = replaced.iter().fold(content, |content, (from, to)| content.replace(from, to));
            if name == "config.conf" {
                // Which is about the whole machine, not about a namespace.
                content += "conntrack: {maxPerCore: 0, min: 0}\n";
            }
            std::fs::write(self.node.dir().join(name), content).expect("a file of the ConfigMap");
        }
    }

    fn start(&mut self) {
        let config = self.node.dir().join("config.conf");
        self.start_with(&format!("--config={}", config.display()));
    }

    fn start_with(&mut self, argument: &str) {
        let starter: Vec<&str> = self.starter.iter().map(String::as_str).collect();
        self.node.start_by(&starter, &[argument]);
    }

    /// Does what the init container does.
    fn initialise(&mut self) {
        self.node.netns().run("sysctl -q -w net.ipv4.conf.all.route_localnet=0");
        let config = self.node.dir().join("config.conf");
        self.node.start(&[&format!("--config={}", config.display()), "--init-only"]);
        let status = self.node.wait();
        assert_eq!(status.code(), Some(0), "{}", self.node.log());
        assert_eq!(self.node.netns().run("sysctl -n net.ipv4.conf.all.route_localnet"), "1\n");
    }

    fn until_programmed(&self, flavour: Flavour) {
        let rules = || self.node.netns().try_run(&format!("iptables-{flavour}-save -t nat"));
        self.node.until("the rules are there", || {
            String::from_utf8_lossy(&rules().stdout).contains("--to-destination 10.244.2.5:8080")
        });
    }

    /// Says which flavour of iptables the node uses.
    fn hint(&self, flavour: Flavour) {
        for program in ["iptables", "ip6tables"] {
            self.node.netns().run(&format!("{program}-{flavour} -w -t mangle -N {HINT}"));
        }
    }
}

/// What a request needs: API group, resource, verb.
fn needed(request: &Request) -> [String; 3] {
    let segments: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let (group, rest) = match segments.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _version, rest @ ..] => (*group, rest),
        _ => panic!("{} is no resource", request.path),
    };
    let rest = if let ["namespaces", _, rest @ ..] = rest { rest } else { rest };
    let verb = match (request.method.as_str(), request.is_watch(), rest.len()) {
        ("GET", true, _) => "watch",
        ("GET", false, 1) => "list",
        ("GET", false, _) => "get",
        ("POST", ..) => "create",
        ("PATCH", ..) => "patch",
        ("PUT", ..) => "update",
        (other, ..) => other,
    };
    [group, rest[0], verb].map(str::to_owned)
}

#[test]
fn config_map_works_and_every_request_is_allowed_by_the_role() {
    let mut allowed = BTreeSet::new();
    let role = documents("golden/kubeadm/cluster.yaml").into_iter().find(|object| object["kind"] == "ClusterRole");
    let role = role.expect("a role");
    let binding = documents("deploy/rbac.yaml").into_iter().find(|object| object["kind"] == "ClusterRoleBinding");
    assert_eq!(binding.expect("a binding")["roleRef"]["name"], role["metadata"]["name"]);
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().expect("a list").iter().map(|text| text.as_str().expect("text").to_owned()).collect()
    };
    for rule in role["rules"].as_array().expect("rules") {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                allowed.extend(texts(&rule["verbs"]).into_iter().map(|verb| [group.clone(), resource.clone(), verb]));
            }
        }
    }
    let mut used = BTreeSet::new();
    // Old servers refuse streamed lists, so the proxy requests plain lists.
    for old in [false, true] {
        let mut world = World::new();
        world.api.refuse_streaming_lists(old);
        world.start();
        world.until_programmed(Flavour::Nft);
        world.node.until_health("/healthz", 200);
        used.extend(world.api.requests().iter().map(needed));
    }
    assert!(used.is_subset(&allowed), "not allowed: {:?}", used.difference(&allowed).collect::<Vec<_>>());
    for resource in [["", "nodes"], ["", "services"], ["discovery.k8s.io", "endpointslices"]] {
        for verb in ["list", "watch"] {
            let right = [resource[0], resource[1], verb].map(str::to_owned);
            assert!(used.contains(&right), "{right:?} is not used");
        }
    }
}

/// Has the proxy start as a container runtime would start it: these capabilities, nothing of the file system to be
/// written but the lock of iptables, `/proc/sys` neither.
fn confine(world: &mut World, capabilities: &[&str], lock: bool) {
    let lock = if lock { "touch $LOCK; mount --bind $LOCK $LOCK;" } else { "" };
    let mut set = "-all".to_owned();
    for capability in capabilities {
        set += &format!(",+{}", capability.to_lowercase());
    }
    let script = format!(
        "set -e; LOCK=$XTABLES_LOCKFILE; {lock} mount --bind /proc/sys /proc/sys; \
         mount -o remount,bind,ro /proc/sys; mount -o remount,bind,ro /; \
         exec setpriv --bounding-set={set} --inh-caps=-all --no-new-privs \"$0\" \"$@\""
    );
    world.starter = ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).into();
}

#[test]
fn the_capabilities_granted_are_enough_for_both_flavours() {
    let granted = document("deploy/daemonset.yaml");
    let granted = &granted.pointer(CONTAINER).expect("a container")["securityContext"]["capabilities"]["add"];
    let granted: Vec<&str> = granted.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for flavour in Flavour::ALL {
        let mut world = World::new();
        world.hint(flavour);
        world.initialise();
        confine(&mut world, &granted, true);
        world.start();
        world.until_programmed(flavour);
        world.node.until_health("/healthz", 200);
        world.node.until("conntrack is looked at", || {
            world.node.metric("kubeproxy_conntrack_reconciler_sync_duration_seconds_count") >= 1.0
        });
        let log = world.node.log();
        let complaints = log.lines().filter(|line| line.starts_with(['E', 'W']));
        // Which is about the configuration, kubeadm's too.
        let complaints: Vec<&str> = complaints.filter(|line| !line.contains("nodePortAddresses is unset")).collect();
        assert!(complaints.is_empty(), "{flavour}: {complaints:#?}");
    }
}

#[test]
fn none_of_the_rights_granted_could_be_left_out() {
    for (flavour, capabilities, lock) in
        [(Flavour::Nft, &["NET_RAW"][..], true), (Flavour::Legacy, &["NET_ADMIN", "NET_RAW"], false)]
    {
        let mut world = World::new();
        world.hint(flavour);
        confine(&mut world, capabilities, lock);
        world.start();
        let status = world.node.wait();
        assert_eq!(status.code(), Some(1), "{flavour} {capabilities:?}");
        world.node.until_logged(&["iptables is not available on this host"]);
    }
    // The legacy tools cannot detect the flavour in use: rules would be written where other programs do not look.
    let mut world = World::new();
    world.hint(Flavour::Legacy);
    confine(&mut world, &["NET_ADMIN"], true);
    world.start();
    world.node.until_logged(&["Using iptables mode", "nf_tables", "no hint"]);
}

/// A node whose program runs as a container runtime starts it: with the files of an image of this kind as a read-only root,
/// the mounts of the DaemonSet and the service account.
fn in_image(kind: &str, flavour: Flavour) -> World {
    let names = document("deploy/daemonset.yaml");
    let container = names.pointer(CONTAINER).expect("a container");
    let mut world = World::new();
    world.hint(flavour);
    world.initialise();
    world.write_files(&[]);
    let image = world.node.dir().join("image").to_string_lossy().into_owned();
    let made = std::process::Command::new("sh")
        .arg(Path::new(ROOT).join("deploy/image-root.sh"))
        .args([&image, env!("CARGO_BIN_EXE_kube-proxy"), kind])
        .output()
        .expect("sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        let path = mount["mountPath"].as_str().expect("a path");
        // Of a file, the folder.
        let path = path.strip_suffix("/xtables.lock").unwrap_or(path);
        assert!(Path::new(&format!("{image}{path}")).is_dir(), "there is no place to mount {path}");
    }
    let program = container["command"][0].as_str().expect("a program");
    let folder = world.node.dir().display();
    let script = format!(
        "set -e; touch {image}/run/xtables.lock {folder}/lock; mount --bind {image} {image}; \
         mount --rbind /dev {image}/dev; mount --rbind /proc {image}/proc; mount --bind /proc/sys {image}/proc/sys; \
         mount -o remount,bind,ro {image}/proc/sys; mount --bind {folder}/lock {image}/run/xtables.lock; \
         mount --bind {folder} {image}{CONFIG}; mount --bind {folder} {image}{SERVICE_ACCOUNT}; \
         mount -o remount,bind,ro {image}; shift; unset XTABLES_LOCKFILE; export PATH=/usr/local/bin:/usr/sbin; \
         exec /usr/sbin/chroot {image} {program} \"$@\""
    );
    world.starter = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).into();
    world.start_with(container["command"][1].as_str().expect("an argument"));
    world
}

#[test]
fn files_of_the_image_are_sufficient() {
    for (kind, flavour) in [("full", Flavour::Nft), ("full", Flavour::Legacy), ("slim", Flavour::Nft)] {
        let world = in_image(kind, flavour);
        world.until_programmed(flavour);
        world.node.until_health("/healthz", 200);
    }
    // The slim one has no iptables.
    let mut world = in_image("slim", Flavour::Legacy);
    assert_eq!(world.node.wait().code(), Some(1));
    world.node.until_logged(&["iptables flavour legacy needs the iptables programs", "use an image with them"]);
}
