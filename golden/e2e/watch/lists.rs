//! Plain and streamed lists: encodings, pages, slow servers, truncated bodies, expired versions.

use std::time::Duration;

use golden::apiserver::{End, Fault, MediaTypes, Pace, Request, Requests};
use golden::sample::service;
use serde_json::{Value, json};

use super::{NODES, SERVICES, SLICES, WEB, World, param};

/// More than one page.
const MANY: u32 = 600;
const LAST: &str = "scale/svc-00599:http";

/// A world whose server has no streamed lists.
fn without_streams() -> World {
    let world = World::new();
    world.api.refuse_streaming_lists(true);
    world
}

/// The plain lists of a collection, page by page.
fn pages(world: &World, path: &str) -> Vec<Request> {
    world.requests(path).into_iter().filter(|request| !request.is_watch()).collect()
}

#[track_caller]
fn until_all_are_there(world: &World) {
    world.node.until("all Services are programmed", || world.node.rules().contains(LAST));
}

#[test]
fn every_server_encoding_is_decoded() {
    std::thread::scope(|scope| {
        for offered in [MediaTypes::JsonAndProtobuf, MediaTypes::OnlyJson, MediaTypes::AlwaysJson] {
            for streams in [true, false] {
                scope.spawn(move || {
                    let mut world = World::new();
                    world.api.offer(offered);
                    world.api.refuse_streaming_lists(!streams);
                    world.start();
                    world.settled();
                    world.works("later");
                    world.api.end_watches(End::Torn);
                    world.works("last");
                });
            }
        }
    });
}

/// kube-apiserver 1.37 compresses streamed lists, in a gzip member for each flush.
#[test]
fn streamed_lists_in_gzip_members_are_decoded() {
    let mut world = World::new();
    world.api.compress_streamed_lists(true);
    world.start();
    world.settled();
    let requests = world.requests(SERVICES);
    assert_eq!(requests.len(), 1, "no fallback: {requests:#?}");
    world.works("later");
}

#[test]
fn a_large_list_is_read_in_pages_from_a_server_without_a_watch_cache() {
    let mut world = without_streams();
    world.api.set_watch_cache(false);
    world.api.load_synthetic(MANY, 1);
    world.start();
    until_all_are_there(&world);
    for path in [SERVICES, SLICES] {
        let [first, second] = &pages(&world, path)[..] else { panic!("two pages: {:#?}", world.requests(path)) };
        assert_eq!((&*param(first, "limit"), &*param(first, "resourceVersion")), ("500", "0"));
        assert_eq!((&*param(second, "limit"), &*param(second, "resourceVersion")), ("500", ""), "{second:?}");
        assert!(first.param("continue").is_none() && !param(second, "continue").is_empty(), "{second:?}");
        assert_eq!(first.accept_encoding, "gzip");
    }
}

#[test]
fn watch_cache_returns_the_list_in_one_page() {
    let mut world = without_streams();
    world.api.load_synthetic(MANY, 1);
    world.start();
    until_all_are_there(&world);
    assert_eq!((pages(&world, SERVICES).len(), pages(&world, SLICES).len()), (1, 1));
}

/// client-go reads the whole list again then, without pages (tools/pager).
#[test]
fn expired_page_is_followed_by_a_whole_list() {
    let mut world = without_streams();
    world.api.set_watch_cache(false);
    world.api.load_synthetic(MANY, 1);
    world.api.inject(Fault::ContinueExpired.on(Requests::LaterPages).of("Service").times(1));
    world.start();
    until_all_are_there(&world);
    let pages = pages(&world, SERVICES);
    let [_, expired, whole] = &pages[..] else { panic!("{pages:#?}") };
    assert_eq!((whole.param("continue"), whole.param("limit")), (None, None), "{whole:?}");
    let waited = whole.received - expired.received;
    assert!(waited < Duration::from_secs(1), "at once, not after {waited:?}");
}

#[test]
fn slow_lists_complete_while_bytes_arrive() {
    // At 50 KB a second, more than 15 seconds for the slices of either encoding.
    let slow = Pace::Slow { bytes: 5_000, delay: Duration::from_millis(100) };
    std::thread::scope(|scope| {
        for requests in [Requests::Lists, Requests::StreamedLists] {
            scope.spawn(move || {
                let mut world = World::new();
                world.api.refuse_streaming_lists(requests == Requests::Lists);
                world.api.set_watch_cache(false);
                world.api.load_synthetic(MANY, 10);
                world.api.inject(Fault::Paced(slow).on(requests).of("EndpointSlice"));
                world.start();
                world.within(Duration::from_secs(150), "the slow list is programmed", || {
                    world.node.rules().contains(LAST)
                });
                let asked = world.requests(SLICES);
                let streams = asked.iter().filter(|request| request.is_streaming_list()).count();
                assert_eq!(streams, 1, "{asked:#?}");
                let lists = if requests == Requests::Lists { 2 } else { 0 };
                assert_eq!(pages(&world, SLICES).len(), lists, "it was not begun anew: {asked:#?}");
            });
        }
    });
}

/// A connection that died in silence in the middle of a page.
#[test]
fn hanging_page_is_requested_again() {
    // It has no deadline for lists.
    if World::is_upstreams() {
        return;
    }
    let mut world = without_streams();
    world.api.inject(Fault::Paced(Pace::HalfBody).on(Requests::Lists).of("Service").times(1));
    world.start();
    world.within(Duration::from_secs(90), "the list is asked for again", || pages(&world, SERVICES).len() == 2);
    world.settled();
}

/// One test for each fault of a plain list that happens once: nothing is programmed of it, and the next list counts.
macro_rules! lists_that_once {
    ($($name:ident: $fault:expr;)*) => {
        $(#[test]
        fn $name() {
            let mut world = without_streams();
            for kind in ["Service", "EndpointSlice"] {
                world.api.inject($fault.on(Requests::Lists).of(kind).times(1));
            }
            world.start();
            world.settled();
            for (path, kind) in [(SERVICES, "Services"), (SLICES, "EndpointSlices")] {
                assert_eq!(pages(&world, path).len(), 2, "{:#?}", world.requests(path));
                let log = world.node.log();
                assert!(World::is_upstreams() || log.lines().any(|line| line.starts_with(['W', 'E']) && line.contains(kind)), "{log}");
            }
            world.works("later");
        })*
    };
}

lists_that_once! {
    were_cut_off_in_a_chunk: Fault::Cut { after: 100, announced: false };
    were_cut_off_before_their_length: Fault::Cut { after: 100, announced: true };
    were_garbage: Fault::Garbage;
    were_html_with_status_200: Fault::Html(200);
    were_html_of_a_bad_gateway: Fault::Html(502);
    were_a_failure_with_status_200: Fault::RefuseInOk(403);
    were_hung_up_on: Fault::HangUp;
    timed_out_in_plain_text: Fault::TimedOut;
    were_forbidden: Fault::Refuse(403);
    were_unavailable: Fault::Refuse(503);
}

/// No API server has one. What is programmed stays, and the next list without it counts.
#[test]
fn a_list_with_an_object_without_a_name_changes_nothing() {
    for offered in [MediaTypes::JsonAndProtobuf, MediaTypes::OnlyJson] {
        let mut world = without_streams();
        world.api.offer(offered);
        world.start();
        world.settled();
        let version = world.api.version().to_string();
        let unnamed = json!({ "metadata": { "namespace": "default" }, "spec": { "clusterIP": "10.96.0.77" } });
        let list = json!({ "kind": "ServiceList", "metadata": { "resourceVersion": version }, "items": [unnamed] });
        world.api.restore(&list);
        world.api.end_watches_with_error("Service", 410);
        world.within(Duration::from_secs(15), "the list is read", || !pages(&world, SERVICES)[1..].is_empty());
        world.node.until_endpoints(WEB, &["10.244.2.5:8080", "10.244.2.6:8080"]);
        assert!(!world.node.rules().contains("10.96.0.77"));
        world.api.delete("Service", "default", "");
        world.works("later");
    }
}

/// The first sync waits for the Node, for half a minute.
#[test]
fn a_node_that_may_not_be_read_does_not_keep_services_from_being_programmed() {
    let mut world = World::new();
    world.api.inject(Fault::Refuse(403).on(Requests::All).of("Node"));
    world.start();
    world.node.until_logged(&["Node", "forbidden"]);
    // It begins with nothing before it has the Node.
    if World::is_upstreams() {
        return;
    }
    world.within(Duration::from_secs(60), "rules without a Node", || world.node.rules().contains("10.96.0.10/32"));
    let nodes = world.requests(NODES).len();
    assert!(nodes <= 30, "{nodes} requests for the Node");
}

/// client-go forgets its version and lists again at once (tools/cache/reflector.go, `isTooLargeResourceVersionError`).
#[test]
fn a_server_restored_from_a_backup_is_listed_anew() {
    for streams in [true, false] {
        let mut world = World::new();
        world.api.refuse_streaming_lists(!streams);
        for n in 0..20 {
            world.api.apply(service(&format!("filler-{n}"), &format!("10.96.1.{n}")));
        }
        world.start();
        world.settled();
        world.api.clear_requests();
        world.api.rewind(5);
        world.api.inject(Fault::ErrorEvent(410).on(Requests::Watches).of("Service").times(1));
        world.api.end_watches_of("Service", End::Clean);
        world.within(Duration::from_secs(15), "a list without a version", || {
            world.requests(SERVICES).iter().any(|request| {
                (request.is_streaming_list() || !request.is_watch())
                    && matches!(request.param("resourceVersion").as_deref(), None | Some("" | "0"))
            })
        });
        world.api.apply(service("restored", "10.96.0.55"));
        world.node.until("what came after is programmed", || world.node.rules().contains("10.96.0.55/32"));
    }
}

#[test]
fn an_object_that_changed_while_pages_were_read_is_not_lost() {
    let mut world = without_streams();
    world.api.set_watch_cache(false);
    world.api.load_synthetic(MANY, 1);
    // The second page waits until the change is made.
    let slow = Pace::Slow { bytes: 2_000, delay: Duration::from_millis(20) };
    world.api.inject(Fault::Paced(slow).on(Requests::LaterPages).of("EndpointSlice").times(1));
    world.start();
    world.within(Duration::from_secs(30), "the second page is asked for", || {
        world.requests(SLICES).iter().any(|request| request.param("continue").is_some())
    });
    let mut slice: Value = world.api.get("EndpointSlice", "default", "web-1").expect("it is there");
    slice["endpoints"][0]["addresses"] = json!(["10.244.2.77"]);
    world.api.apply(slice);
    until_all_are_there(&world);
    world.node.until_endpoints(WEB, &["10.244.2.77:8080", "10.244.2.6:8080"]);
}
