//! Invalid objects and files: each is reported with its field, and all others are programmed.

use std::os::unix::fs::OpenOptionsExt;

use golden::node::NAME;
use golden::sample::{node, service, slice};
use serde_json::{Value, json};

use super::{World, text};

#[test]
fn half_written_file_keeps_its_last_objects() {
    let world = World::running();
    let whole =
        text(&[service("web", "10.96.0.10"), service("two", "10.96.0.12"), slice("web-1", "web", &["10.244.2.9"])]);
    let halves =
        [&whole[..whole.len() / 3], &whole[..whole.len() - 20], "kind: [\n", "\u{7}", "{", "a: b: c", "- &a [*b]"];
    for half in halves {
        world.write_text("web.yaml", half);
        world.write("other.yaml", &[service("other", "10.96.0.11"), slice("other-1", "other", &["10.244.2.11"])]);
        world.node.until_logged(&[
            "Failed to load",
            "web.yaml, keeping its objects",
            "the document that begins in line",
        ]);
        world.leads("other", &["10.244.2.11"]);
        world.leads("web", &["10.244.2.5"]);
        std::fs::remove_file(world.folder.join("other.yaml")).expect("it is there");
        world.leads("other", &[]);
        world.leads("web", &["10.244.2.5"]);
        world.write("web.yaml", &[slice("web-1", "web", &["10.244.2.5"])]);
        world.works("10.244.2.6");
        world.works("10.244.2.5");
    }
}

#[test]
fn invalid_text_and_unreadable_files_keep_their_last_objects() {
    let world = World::running();
    std::fs::write(world.folder.join("web.yaml"), b"kind: Service\xff\xfe").expect("written");
    world.node.until_logged(&["Failed to load", "web.yaml", "UTF-8"]);
    world.leads("web", &["10.244.2.5"]);
    // A folder is no file, a link to nothing holds nothing; a pipe must not be waited for.
    std::fs::create_dir(world.folder.join("dir.yaml")).expect("a folder");
    std::os::unix::fs::symlink("nowhere", world.folder.join("dangling.yaml")).expect("a link");
    nix::unistd::mkfifo(&world.folder.join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o000)
        .open(world.folder.join("empty.yaml"))
        .expect("empty");
    world.works("10.244.2.6");
}

#[test]
fn dangling_symlink_keeps_its_last_objects_until_removed() {
    let world = World::running();
    let (target, link) = (world.node.dir().join("elsewhere"), world.folder.join("link.yaml"));
    let write = |pod: &str| std::fs::write(&target, text(&[slice("linked-1", "linked", &[pod])])).expect("written");
    write("10.244.2.31");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    world.write("linked.yaml", &[service("linked", "10.96.0.31")]);
    world.leads("linked", &["10.244.2.31"]);
    std::fs::remove_file(&target).expect("it is there");
    world.works("10.244.2.6");
    world.node.until("the link is named", || {
        // Nothing tells of changes behind a link: any edit has all files looked at.
        world.works("10.244.2.7");
        world.works("10.244.2.6");
        world.node.log().contains("link.yaml, keeping its objects")
    });
    world.leads("linked", &["10.244.2.31"]);
    write("10.244.2.32");
    world.works("10.244.2.7");
    world.leads("linked", &["10.244.2.32"]);
    std::fs::remove_file(&link).expect("it is there");
    world.leads("linked", &[]);
}

#[test]
fn rules_stay_while_a_file_cannot_be_read_at_the_start() {
    let mut world = World::running();
    // The sync under way, of the other family perhaps, is finished.
    world.node.end(nix::sys::signal::Signal::SIGTERM);
    let before = world.node.rules();
    world.write_text("web.yaml", "kind: EndpointSlice\nmetadata: {");
    world.start();
    world.node.until_logged(&["Failed to load", "web.yaml, no rules before it loads"]);
    world.node.until_health("/livez", 200);
    assert_eq!(world.node.rules(), before);
    world.works("10.244.2.6");
}

/// Wrong objects, what must stand in the line of the log that is about each, and whether it is skipped as a whole.
fn bad_objects() -> Vec<(Value, [&'static str; 3])> {
    let service = |name: &str, pointer: &str, value: Value| changed(service(name, "10.96.3.3"), pointer, value);
    let slice = |name: &str, pointer: &str, value: Value| changed(slice(name, "web", &["10.244.66.6"]), pointer, value);
    vec![
        (
            service("p70000", "/spec/ports/0/port", json!(70000)),
            ["Service default/p70000 is skipped", "spec.ports[0].port", "70000"],
        ),
        (service("p0", "/spec/ports/0/port", json!(0)), ["Service default/p0 is skipped", "spec.ports[0].port", "0"]),
        (
            service("pnone", "/spec/ports/0", json!({})),
            ["Service default/pnone is skipped", "spec.ports[0].port", "missing"],
        ),
        (
            service("pneg", "/spec/ports/0/port", json!(-1)),
            ["Service default/pneg is skipped", "spec.ports[0].port", "-1"],
        ),
        (
            service("proto", "/spec/ports/0/protocol", json!("ICMP")),
            ["Service default/proto is skipped", "spec.ports[0].protocol", "ICMP"],
        ),
        (
            service("pname", "/spec/ports/0/name", json!("a\nb")),
            ["Service default/pname is skipped", "spec.ports[0].name", "'\\n'"],
        ),
        (
            service("ip", "/spec/clusterIPs/0", json!("10.96.0.300")),
            ["Service default/ip is skipped", "spec.clusterIPs[0]", "10.96.0.300"],
        ),
        (
            service("family", "/spec/clusterIPs/0", json!("fd00::1")),
            ["Service default/family is skipped", "spec.clusterIPs[0]", "IPv4"],
        ),
        (
            service("timeout", "/spec/sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": -5 } })),
            ["Service default/timeout is skipped", "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "-5"],
        ),
        (
            service("nodeport", "/spec/ports/0/nodePort", json!("http")),
            ["Service default/nodeport is skipped", "spec.ports[0].nodePort", "http"],
        ),
        (
            service("labels", "/metadata/labels", json!(["a"])),
            ["Service default/labels is skipped", "metadata.labels", "sequence"],
        ),
        (service("a\"b\nc", "/spec/type", json!("ClusterIP")), ["is skipped", "metadata.name", "'\\n'"]),
        (service(&"x".repeat(64), "/spec/type", json!("ClusterIP")), ["is skipped", "metadata.name", "longer than 63"]),
        (service("a b", "/spec/type", json!("ClusterIP")), ["is skipped", "metadata.name", "' '"]),
        (service("", "/spec/type", json!("ClusterIP")), ["cannot decode Service", "metadata.name", "missing"]),
        (service("ports", "/spec/ports", json!([])), ["Service default/ports", "spec.ports", "empty"]),
        (service("noip", "/spec/clusterIP", json!("")), ["Service default/noip", "spec.clusterIP", "empty"]),
        (
            service("external", "/spec/externalIPs", json!(["10.0.0.1", "x"])),
            ["Service default/external", "spec.externalIPs", "\"x\""],
        ),
        (
            service("ranges", "/spec/loadBalancerSourceRanges", json!(["10.0.0.0/33"])),
            ["Service default/ranges", "spec.loadBalancerSourceRanges", "10.0.0.0/33"],
        ),
        (
            slice("s70000", "/ports/0/port", json!(70000)),
            ["EndpointSlice default/s70000 is skipped", "ports[0].port", "70000"],
        ),
        (
            slice("sproto", "/ports/0/protocol", json!("GRE")),
            ["EndpointSlice default/sproto is skipped", "ports[0].protocol", "GRE"],
        ),
        (slice("sname", "/ports/0/name", Value::Null), ["EndpointSlice default/sname", "ports[0].name", "missing"]),
        (slice("sport", "/ports/0/port", Value::Null), ["EndpointSlice default/sport", "ports[0].port", "missing"]),
        (
            slice("sip", "/endpoints/0/addresses/0", json!("10.244.66")),
            ["EndpointSlice default/sip", "endpoints[0].addresses[0]", "10.244.66"],
        ),
        (
            slice("sip6", "/endpoints/0/addresses/0", json!("fd00::1")),
            ["EndpointSlice default/sip6", "endpoints[0].addresses[0]", "fd00::1"],
        ),
        (
            slice("snone", "/endpoints/0/addresses", json!([])),
            ["EndpointSlice default/snone", "endpoints[0].addresses", "empty"],
        ),
        (slice("stype", "/addressType", json!("FQDN")), ["EndpointSlice default/stype", "addressType", "FQDN"]),
        (
            slice("slabel", "/metadata/labels", json!({})),
            ["EndpointSlice default/slabel", "kubernetes.io/service-name", "left out"],
        ),
        (
            slice("sready", "/endpoints/0/conditions/ready", json!("yes")),
            ["EndpointSlice default/sready is skipped", "endpoints[0].conditions.ready", "yes"],
        ),
        (
            json!({ "kind": "Servce", "metadata": { "name": "typo" } }),
            ["kind: \"Servce\"", "none of Service", "Skipped"],
        ),
        (
            json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": { "name": "knative" } }),
            ["Service default/knative", "apiVersion", "Skipped"],
        ),
        (json!(["no object"]), ["kind: \"\"", "none of Service", "Skipped"]),
    ]
}

fn changed(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    match object.pointer_mut(parent).expect("it has that") {
        Value::Array(items) => items[field.parse::<usize>().expect("an index")] = value,
        parent => parent[field] = value,
    }
    object
}

#[test]
fn each_invalid_object_is_named_with_its_field_and_others_are_used() {
    let mut world = World::new();
    let (bad, messages): (Vec<Value>, Vec<[&str; 3]>) = bad_objects().into_iter().unzip();
    world.write("bad.yaml", &bad);
    world.start();
    world.leads("web", &["10.244.2.5"]);
    for parts in messages {
        world.node.until_logged(&parts);
    }
    // Unusual Services are programmed as far as possible, and skipped ones are not.
    let rules = world.node.rules();
    assert!(rules.contains("default/external:http") && rules.contains("default/ranges:http"), "{rules}");
    for gone in ["p70000", "p0", "pname", "family", "timeout", "a b", "default/noip", "default/ports", "10.244.66."] {
        assert!(!rules.contains(gone), "{gone} is in {rules}");
    }
    assert!(!world.node.log().contains("panicked"), "{}", world.node.log());
    world.works("10.244.2.6");
}

#[test]
fn object_that_becomes_invalid_keeps_its_rules_until_valid_or_deleted() {
    let world = World::running();
    let base = |service: Value| world.write("base.yaml", &[node(NAME, "zone-a"), service]);
    base(changed(service("web", "10.96.0.10"), "/spec/ports/0/port", json!(70000)));
    world.node.until_logged(&["Service default/web is skipped"]);
    world.works("10.244.2.6");
    base(changed(service("web", "10.96.0.10"), "/spec/ports/0/port", json!(81)));
    world.node.until("it is good again", || world.node.rules().contains("--dport 81 "));
    base(changed(service("web", "10.96.0.10"), "/spec/ports", json!("x")));
    world.node.until_logged(&["Service default/web is skipped: spec.ports"]);
    world.works("10.244.2.5");
    world.write("base.yaml", &[node(NAME, "zone-a")]);
    world.leads("web", &[]);
    assert!(!world.node.rules().contains("10.96.0.10/32"), "{}", world.node.rules());
}

#[test]
fn refused_rules_are_left_out_alone_and_named() {
    let world = World::running();
    // No API server would take this, and the kernel's tools do not either.
    let mut instant = service("instant", "10.96.0.20");
    instant["spec"]["sessionAffinity"] = json!("ClientIP");
    instant["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 0 } });
    let fine = service("quote\"backslash\\apostrophe'", "10.96.0.22");
    let refused = [instant, slice("instant-1", "instant", &["10.244.2.20"]), fine, service("fine", "10.96.0.23")];
    world.write("refused.yaml", &refused);
    world.node.until_logged(&["left out Service port default/instant:http", "--seconds"]);
    world.node.until("the others are there", || {
        let rules = world.node.rules();
        rules.contains("10.96.0.22/32") && rules.contains("10.96.0.23/32")
    });
    assert!(!world.node.rules().contains("10.96.0.20/32"));
    world.works("10.244.2.6");
    let rejected = world.node.metric("kubeproxy_sync_proxy_rules_rejected_service_ports");
    assert!((rejected - 1.0).abs() < 0.1, "{rejected} Service ports are counted as left out");
    std::fs::remove_file(world.folder.join("refused.yaml")).expect("it is there");
    world.node.until("nothing is left out any more", || {
        world.node.metric("kubeproxy_sync_proxy_rules_rejected_service_ports") < 1.0
    });
    world.works("10.244.2.7");
}

#[test]
fn duplicate_and_unknown_objects_have_no_effect() {
    let world = World::running();
    let mut double = service("double", "10.96.0.14");
    double["spec"]["ports"] = json!([{ "name": "http", "port": 80 }, { "name": "http", "port": 81 }]);
    let mut twice = slice("double-1", "double", &["10.244.2.14", "10.244.2.14", "10.244.2.15"]);
    twice["unknownField"] = json!({ "deep": [1, null] });
    let ports = twice["ports"][0].clone();
    twice["ports"] = json!([ports, ports]);
    let again = slice("double-2", "double", &["10.244.2.15"]);
    let stranger = slice("stranger-1", "absent", &["10.244.2.77"]);
    world.write(
        "doubles.yaml",
        &[double, twice, again, stranger, service("gone", "10.96.0.15"), service("gone", "10.96.0.16")],
    );
    world.leads("double", &["10.244.2.14", "10.244.2.15"]);
    world.node.until_logged(&["Service default/double", "spec.ports[1].name", "more than once"]);
    world.node.until_logged(&["Service default/gone is defined more than once", "using the last one"]);
    let rules = world.node.rules();
    assert!(rules.contains("--dport 81 ") && rules.contains("10.96.0.16/32"), "{rules}");
    assert!(!rules.contains("10.244.2.77") && !rules.contains("10.96.0.15/32"), "{rules}");
    world.write("late.yaml", &[service("absent", "10.96.0.17")]);
    world.leads("absent", &["10.244.2.77"]);
}
