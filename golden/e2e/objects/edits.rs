//! Edits of files, in all the ways in which people and programs make them.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use golden::node::Node;
use golden::sample::{service, slice};
use serde_json::json;

use super::{PROMPT, World, text};

#[test]
fn an_edit_is_in_the_rules_within_a_second() {
    let world = World::running();
    // The best of some, for other tests run at the same time.
    let took = (0..5).map(|round| {
        let start = Instant::now();
        world.works(&format!("10.244.3.{round}"));
        start.elapsed()
    });
    let best = took.min().expect("five of them");
    assert!(best < PROMPT, "the fastest of five edits took {best:?}");
}

#[test]
fn files_come_go_and_are_written_in_place() {
    let world = World::running();
    world.write("other.yml", &[service("other", "10.96.0.11"), slice("other-1", "other", &["10.244.2.11"])]);
    world.leads("other", &["10.244.2.11"]);
    world.leads("web", &["10.244.2.5"]);
    let path = world.folder.join("other.yml");
    std::fs::write(&path, text(&[service("other", "10.96.0.11"), slice("other-1", "other", &["10.244.2.12"])]))
        .expect("written in place");
    world.leads("other", &["10.244.2.12"]);
    std::fs::rename(&path, world.folder.join("other.json")).expect("another name");
    world.works("10.244.2.6");
    world.leads("other", &["10.244.2.12"]);
    std::fs::remove_file(world.folder.join("other.json")).expect("it is there");
    world.leads("other", &[]);
    assert!(!world.node.rules().contains("10.96.0.11/32"), "{}", world.node.rules());
    world.leads("web", &["10.244.2.6"]);
}

#[test]
fn backup_files_of_editors_are_ignored() {
    let world = World::running();
    for name in [".web.yaml.swp", ".hidden.yaml", "web.yaml~", "notes.txt", "4913"] {
        world.write_text(
            name,
            &text(&[slice("web-1", "web", &["10.244.9.9"]), service(&format!("x{}", name.len()), "10.96.0.66")]),
        );
    }
    world.works("10.244.2.6");
    assert!(!world.node.rules().contains("10.96.0.66"), "{}", world.node.rules());
}

#[test]
fn a_volume_of_a_config_map_is_swapped_as_a_whole() {
    let world = World::new();
    let mut node = world.node;
    let volume = node.dir().join("volume");
    let version = |name: &str, pods: &[&str]| {
        let folder = volume.join(name);
        std::fs::create_dir_all(&folder).expect("a version's folder");
        let base = [golden::sample::node(golden::node::NAME, "zone-a"), service("web", "10.96.0.10")];
        std::fs::write(folder.join("base.yaml"), text(&base)).expect("a file");
        std::fs::write(folder.join("web.yaml"), text(&[slice("web-1", "web", pods)])).expect("a file");
    };
    version("..2026_1", &["10.244.2.5"]);
    symlink("..2026_1", volume.join("..data")).expect("a link");
    for file in ["base.yaml", "web.yaml"] {
        symlink(format!("..data/{file}"), volume.join(file)).expect("a link");
    }
    node.start(&["--objects", &volume.to_string_lossy(), "--iptables-min-sync-period=0s"]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    // What the kubelet does, step by step.
    version("..2026_2", &["10.244.2.6", "10.244.2.7"]);
    symlink("..2026_2", volume.join("..data_tmp")).expect("a link");
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("swapped");
    std::fs::remove_dir_all(volume.join("..2026_1")).expect("the old version goes");
    node.until_endpoints("default/web:http", &["10.244.2.6:8080", "10.244.2.7:8080"]);
    assert!(!node.log().contains("Failed to load"), "{}", node.log());
}

#[test]
fn objects_may_be_one_file_that_is_replaced() {
    let World { mut node, folder } = World::new();
    let path = folder.join("all.yaml");
    let write = |pod: &str| {
        let objects = [
            golden::sample::node(golden::node::NAME, "zone-a"),
            service("web", "10.96.0.10"),
            slice("web-1", "web", &[pod]),
        ];
        std::fs::write(folder.join("draft"), text(&objects)).expect("a draft");
        std::fs::rename(folder.join("draft"), &path).expect("put in place");
    };
    write("10.244.2.5");
    node.start(&["--objects", &path.to_string_lossy(), "--iptables-min-sync-period=0s"]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    write("10.244.2.6");
    node.until_endpoints("default/web:http", &["10.244.2.6:8080"]);
    // Gone is not empty: someone is about to write it.
    std::fs::remove_file(&path).expect("it is there");
    node.until_logged(&["Failed to load", "all.yaml, keeping its objects"]);
    node.until_endpoints("default/web:http", &["10.244.2.6:8080"]);
    write("10.244.2.7");
    node.until_endpoints("default/web:http", &["10.244.2.7:8080"]);
}

#[test]
fn a_folder_that_is_put_in_the_place_of_another_is_noticed() {
    let World { mut node, folder } = World::new();
    node.start(&["--objects", &folder.to_string_lossy(), "--iptables-min-sync-period=0s"]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    std::fs::rename(&folder, node.dir().join("away")).expect("moved");
    node.until_logged(&["Failed to load", "objects, keeping its objects"]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    let next = node.dir().join("next");
    std::fs::create_dir(&next).expect("a folder");
    std::fs::copy(node.dir().join("away/base.yaml"), next.join("base.yaml")).expect("a copy");
    let write =
        |pod: &str| std::fs::write(folder.join("web.yaml"), text(&[slice("web-1", "web", &[pod])])).expect("written");
    std::fs::rename(&next, &folder).expect("in place");
    write("10.244.2.6");
    node.until_endpoints("default/web:http", &["10.244.2.6:8080"]);
    let start = Instant::now();
    write("10.244.2.7");
    node.until_endpoints("default/web:http", &["10.244.2.7:8080"]);
    assert!(start.elapsed() < Duration::from_secs(5), "the new folder is not watched: {:?}", start.elapsed());
}

#[test]
fn object_in_two_files_is_taken_from_the_last_file_by_name() {
    let world = World::running();
    let in_a = |pod: &str| world.write("a.yaml", &[slice("web-1", "web", &[pod])]);
    in_a("10.244.2.1");
    world.node.until_logged(&["EndpointSlice default/web-1 is defined in several files", "a.yaml, ", "web.yaml"]);
    in_a("10.244.2.2");
    world.works("10.244.2.6");
    std::fs::remove_file(world.folder.join("web.yaml")).expect("it is there");
    world.leads("web", &["10.244.2.2"]);
    world.works("10.244.2.7");
    std::fs::remove_file(world.folder.join("a.yaml")).expect("it is there");
    world.works("10.244.2.8");
    std::fs::remove_file(world.folder.join("web.yaml")).expect("it is there");
    world.leads("web", &[]);
}

#[test]
fn a_slice_may_change_its_family_and_its_service() {
    let world = World::running();
    let mut v6 = service("web", "10.96.0.10");
    v6["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    v6["spec"]["clusterIPs"] = json!(["10.96.0.10", "fd00:10:96::10"]);
    let node = golden::sample::node(golden::node::NAME, "zone-a");
    world.write("base.yaml", &[node, v6, service("other", "10.96.0.11")]);
    world.works("10.244.2.6");
    let mut slice6 = slice("web-1", "web", &["fd00:10:244::5"]);
    slice6["addressType"] = json!("IPv6");
    world.write("web.yaml", &[slice6]);
    leads_exactly(&world.node, "default/web:http", "[fd00:10:244::5]:8080");
    world.write("web.yaml", &[slice("web-1", "other", &["10.244.2.7"])]);
    leads_exactly(&world.node, "default/other:http", "10.244.2.7:8080");
    world.leads("web", &[]);
}

#[track_caller]
fn leads_exactly(node: &Node, service_port: &str, endpoint: &str) {
    node.until_endpoints(service_port, &[endpoint]);
}
