//! Checks the layers of the project: the modules and crates that each module or crate may import.
//!
//! Cargo prevents cycles between crates. This test checks their direction, and the layers inside `proxier` and the
//! program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The modules of `proxier`, each with its permitted imports.
const PROXIER: &[(&str, &[&str])] = &[
    ("protobuf", &[]),
    ("schedule", &[]),
    ("model", &["schedule"]),
    ("traffic", &["model"]),
    ("maglev", &["model"]),
    ("hash_support", &["model"]),
    ("track", &["model", "protobuf", "traffic"]),
    ("backend", &["model"]),
    ("addresses", &["model"]),
    ("conntrack", &["model"]),
    ("tuning", &["model"]),
    ("mailbox", &["model", "track", "traffic"]),
    ("xtables", &["backend", "model"]),
    ("iptables", &["addresses", "backend", "hash_support", "model", "traffic", "xtables"]),
    ("ipvs", &["addresses", "backend", "hash_support", "model", "traffic", "xtables"]),
    ("nftables", &["addresses", "backend", "hash_support", "maglev", "model", "traffic"]),
    ("leftovers", &["backend", "iptables", "ipvs", "nftables", "xtables"]),
    ("cleaner", &["addresses", "conntrack", "model"]),
    ("vanished", &["model"]),
    ("ender", &["addresses", "model", "vanished"]),
    ("proxier", &["backend", "cleaner", "ender", "leftovers", "mailbox", "model", "schedule", "track"]),
    ("testing", &["model", "track"]),
];

/// The modules of `proxier` that access the kernel. The others are pure.
const WITH_KERNEL: &[&str] =
    &["addresses", "cleaner", "ender", "iptables", "ipvs", "leftovers", "nftables", "proxier", "tuning", "xtables"];

/// The modules of the program that access the kernel: where it is assembled, and what reads a node.
const PROGRAM_WITH_KERNEL: &[&str] = &["cleanup", "demo", "inspect", "run", "servers", "service_metrics", "setup"];

/// The crates of the workspace, each with its permitted dependencies, without tests.
const CRATES: &[(&str, &[&str])] = &[
    ("proxier/netfilter", &[]),
    ("proxier", &["netfilter"]),
    ("proxier/inspect", &["netfilter", "proxier"]),
    (".", &["netfilter", "proxier", "proxier-inspect"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files of a folder, tests left aside.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}

/// The first part of a file's path below a folder: its module.
fn module(folder: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(folder).expect("below the folder");
    let first = inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// What each module of a folder names after `prefix`, with the file that does; doc comments and unit tests left aside.
fn imports(folder: &Path, prefix: &str) -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let name = Regex::new(&format!(r"(?-u)\b{prefix}::([a-z_]+)")).expect("a pattern");
    let mut found: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for file in sources(folder) {
        let text = fs::read_to_string(&file).expect("UTF-8");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for capture in name.captures_iter(line) {
                let of_module = found.entry(module(folder, &file)).or_default();
                of_module.entry(capture[1].to_owned()).or_insert_with(|| file.clone());
            }
        }
    }
    found
}

#[test]
fn modules_of_the_proxier_import_only_lower_layers() {
    let folder = root().join("proxier/src");
    let allowed: BTreeMap<&str, &[&str]> = PROXIER.iter().copied().collect();
    let mut wrong = Vec::new();
    for (module, imported) in imports(&folder, "crate").into_iter().filter(|(module, _)| module != "lib") {
        let may = allowed.get(module.as_str()).unwrap_or_else(|| panic!("module {module} has no row in this test"));
        for (import, file) in imported.into_iter().filter(|(import, _)| *import != module) {
            if !may.contains(&import.as_str()) {
                wrong.push(format!("{} imports {import}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rows_of_this_test_have_no_cycle() {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for (module, imports) in PROXIER {
        // The rows are in the order of the layers.
        let later: Vec<&&str> = imports.iter().filter(|import| !done.contains(**import)).collect();
        assert!(later.is_empty(), "{module} is listed before {later:?}");
        done.insert(module);
    }
}

#[test]
fn pure_modules_do_not_name_the_kernel() {
    for (folder, allowed) in [("proxier/src", WITH_KERNEL), ("src", PROGRAM_WITH_KERNEL)] {
        for (module, imported) in imports(&root().join(folder), "netfilter") {
            let file = imported.get("kernel").filter(|_| !allowed.contains(&module.as_str()));
            assert!(file.is_none(), "{} imports netfilter::kernel", file.expect("it is some").display());
        }
    }
}

#[test]
fn only_the_node_module_of_inspect_reads_the_kernel() {
    let folder = root().join("proxier/inspect/src");
    // Fuzz targets decode what a kernel would send.
    let may = ["node", "fuzzing"];
    for (module, imported) in imports(&folder, "netfilter") {
        let file = imported.get("kernel").filter(|_| !may.contains(&module.as_str()));
        assert!(file.is_none(), "{} imports netfilter::kernel", file.expect("it is some").display());
    }
    for (module, imported) in imports(&folder, "crate").into_iter().filter(|(module, _)| module != "node") {
        let file = imported.get("node");
        assert!(file.is_none(), "{module} is pure, and {} imports node", file.expect("it is some").display());
    }
}

#[test]
fn modes_do_not_import_each_other() {
    let imports = imports(&root().join("proxier/src"), "crate");
    for mode in ["iptables", "ipvs", "nftables"] {
        let others = ["iptables", "ipvs", "nftables"].into_iter().filter(|other| *other != mode);
        for other in others {
            assert!(!imports[mode].contains_key(other), "{mode} imports {other}");
        }
    }
}

#[test]
fn crates_depend_only_on_lower_ones() {
    let ours: BTreeSet<&str> = ["netfilter", "proxier", "proxier-inspect", "golden", "kube-proxy"].into();
    for (folder, may) in CRATES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let (_, section) = manifest.split_once("\n[dependencies]\n").expect("dependencies");
        let section = section.split("\n[").next().unwrap_or_default();
        let names = section.lines().map(|line| line.split([' ', '.', '=']).next().unwrap_or_default());
        let depends: BTreeSet<&str> = names.filter(|name| ours.contains(name)).collect();
        let may: BTreeSet<&str> = may.iter().copied().collect();
        assert_eq!(depends, may, "dependencies of {folder}");
    }
}

#[test]
fn the_netfilter_crate_knows_nothing_of_kubernetes() {
    let words = Regex::new(r"(?i-u)\b(kubernetes|kubelet|endpointslice|kube[-_]proxy)\b").expect("a pattern");
    for file in sources(&root().join("proxier/netfilter/src")) {
        // Names of chains and tables in the examples of tests and docs are data.
        let text = fs::read_to_string(&file).expect("UTF-8");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let line = code.lines().find(|line| words.is_match(line) && !line.trim_start().starts_with("//"));
        assert!(line.is_none() || file.to_string_lossy().contains("_tests"), "{}: {line:?}", file.display());
    }
}
