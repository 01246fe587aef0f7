//! Streamed lists that fail in every known way: a plain list follows at once, and is used from then on.
//!
//! client-go's reflector falls back after every failure but 429 and a refused connection (tools/cache/reflector.go,
//! `ListAndWatchWithContext`). It waits for a bookmark for ever and streams each new list. This proxy gives up a
//! stream without progress, and does not request one again from a server that failed once.

use std::time::Duration;

use golden::apiserver::{End, Fault, MediaTypes, Pace, Request, Requests};
use golden::sample::slice;

use super::{NODES, SERVICES, SLICES, WEB, World, param};

/// After a refusal, the time until the plain list.
const AT_ONCE: Duration = Duration::from_secs(3);
/// After silence.
const GIVEN_UP: Duration = Duration::from_secs(15);

/// One test for each fault: its name, the fault, and how long the plain list may take to follow.
macro_rules! streamed_lists_that {
    ($($name:ident: $fault:expr, $limit:expr;)*) => {
        $(#[test]
        fn $name() {
            // Most of the time is spent waiting.
            std::thread::scope(|scope| {
                for offered in [MediaTypes::JsonAndProtobuf, MediaTypes::OnlyJson] {
                    scope.spawn(move || fall_back(&$fault, offered, $limit));
                }
            });
        })*
    };
}

streamed_lists_that! {
    are_bad_requests: Fault::Refuse(400), AT_ONCE;
    are_forbidden: Fault::Refuse(403), AT_ONCE;
    are_not_found: Fault::Refuse(404), AT_ONCE;
    are_not_allowed: Fault::Refuse(405), AT_ONCE;
    are_invalid: Fault::Refuse(422), AT_ONCE;
    are_internal_errors: Fault::Refuse(500), AT_ONCE;
    are_not_implemented: Fault::Refuse(501), AT_ONCE;
    are_unavailable: Fault::Refuse(503), AT_ONCE;
    time_out_in_plain_text: Fault::TimedOut, AT_ONCE;
    are_a_bad_gateways_html: Fault::Html(502), AT_ONCE;
    are_a_captive_portals_html: Fault::Html(200), AT_ONCE;
    are_a_failure_with_status_200: Fault::RefuseInOk(500), AT_ONCE;
    are_an_error_event: Fault::ErrorEvent(500), AT_ONCE;
    are_refused_for_an_old_etcd: Fault::WatchProgressDisabled, AT_ONCE;
    end_at_once: Fault::EndAtOnce, AT_ONCE;
    end_without_a_bookmark: Fault::NoBookmark { end: true }, AT_ONCE;
    are_hung_up_on: Fault::HangUp, AT_ONCE;
    are_garbage: Fault::Garbage, AT_ONCE;
    are_cut_off_in_a_chunk: Fault::Cut { after: 100, announced: false }, AT_ONCE;
    are_cut_off_before_their_length: Fault::Cut { after: 100, announced: true }, AT_ONCE;
    never_bring_their_bookmark: Fault::NoBookmark { end: false }, GIVEN_UP;
    never_bring_an_event: Fault::Paced(Pace::Silent), GIVEN_UP;
    stop_in_the_middle: Fault::Paced(Pace::HalfBody), GIVEN_UP;
    are_never_answered: Fault::NoAnswer, GIVEN_UP;
}

#[track_caller]
fn fall_back(fault: &Fault, offered: MediaTypes, limit: Duration) {
    let mut world = World::new();
    world.api.offer(offered);
    world.api.inject(fault.clone().on(Requests::StreamedLists));
    world.start();
    world.within(Duration::from_secs(30), "plain lists and watches of all kinds", || {
        [NODES, SERVICES, SLICES].iter().all(|path| world.requests(path).len() >= 3)
    });
    world.settled();
    for path in [NODES, SERVICES, SLICES] {
        fell_back(&world.requests(path), limit);
    }
    world.works("later");
    if World::is_upstreams() {
        return;
    }
    // A connection that breaks tells nothing about the server, and the next list is streamed.
    if matches!(fault, Fault::HangUp | Fault::Cut { .. }) {
        return;
    }
    stays_with_plain_lists(&world);
    let log = world.node.log();
    let said = |line: &&str| line.starts_with('I') && line.contains("does not stream lists, using plain lists");
    assert_eq!(log.lines().filter(said).count(), 1, "one line says so, for all kinds: {log}");
}

/// A streamed list, a plain list in time, and a watch from where that ended.
#[track_caller]
fn fell_back(requests: &[Request], limit: Duration) {
    let [streamed, list, watch, ..] = requests else { panic!("{requests:#?}") };
    assert!(streamed.is_streaming_list() && !list.is_watch(), "{requests:#?}");
    let waited = list.received - streamed.received;
    assert!(waited < limit, "the plain list came after {waited:?}");
    assert_eq!((&*param(list, "resourceVersion"), &*param(list, "limit")), ("0", "500"), "{list:?}");
    assert!(watch.is_watch() && !watch.is_streaming_list(), "{requests:#?}");
    assert!(!matches!(&*param(watch, "resourceVersion"), "" | "0"), "{watch:?}");
    for selector in ["labelSelector", "fieldSelector"] {
        assert_eq!(list.param(selector), streamed.param(selector));
        assert_eq!(watch.param(selector), streamed.param(selector));
    }
}

/// The next list is a plain one, and so is one after that.
#[track_caller]
fn stays_with_plain_lists(world: &World) {
    for address in ["10.244.2.21", "10.244.2.22"] {
        world.api.clear_requests();
        world.api.inject(Fault::ErrorEvent(410).on(Requests::Watches).of("EndpointSlice").times(1));
        world.api.end_watches_of("EndpointSlice", End::Clean);
        world.api.apply(slice("web-1", "web", &[address]));
        world.node.until_endpoints(WEB, &[&format!("{address}:8080")]);
        // A watch that ends may deliver the slice before its end.
        let lists_again = || world.requests(SLICES).iter().any(|request| !request.is_watch());
        world.within(Duration::from_secs(30), "another list", lists_again);
        let requests = world.requests(SLICES);
        assert!(!requests.iter().any(Request::is_streaming_list), "and did not stream: {requests:#?}");
    }
}

#[test]
fn status_429_is_retried_with_a_streamed_list() {
    for fault in [Fault::TooManyRequests { retry_after: 1 }, Fault::RefuseFor { code: 429, retry_after: 1 }] {
        let mut world = World::new();
        for kind in ["Node", "Service", "EndpointSlice"] {
            world.api.inject(fault.clone().on(Requests::StreamedLists).of(kind).times(2));
        }
        world.start();
        world.settled();
        for path in [NODES, SERVICES, SLICES] {
            let requests = world.requests(path);
            assert_eq!(requests.len(), 3, "{requests:#?}");
            assert!(requests.iter().all(Request::is_streaming_list), "no plain list: {requests:#?}");
            for pair in requests.windows(2) {
                let waited = pair[1].received - pair[0].received;
                assert!(waited >= Duration::from_millis(790), "asked again after {waited:?}");
            }
        }
    }
}

#[test]
fn unreachable_server_is_retried_with_a_streamed_list() {
    let mut world = World::new();
    world.api.down();
    world.start();
    if World::is_upstreams() {
        world.node.until_logged(&["*v1.Node", "watch-list failed - backing off"]);
    } else {
        world.node.until_logged(&["Services", "refused"]);
    }
    world.api.up();
    world.settled();
    for path in [NODES, SERVICES, SLICES] {
        let requests = world.requests(path);
        assert!(requests.iter().all(Request::is_streaming_list), "{requests:#?}");
    }
}

#[test]
fn fallback_of_one_kind_does_not_affect_streaming_of_others() {
    let mut world = World::new();
    world.api.inject(Fault::Refuse(403).on(Requests::StreamedLists).of("EndpointSlice"));
    world.start();
    world.settled();
    fell_back(&world.requests(SLICES), AT_ONCE);
    let services = world.requests(SERVICES);
    assert!(services[0].is_streaming_list() && services.iter().all(Request::is_watch), "{services:#?}");
}
