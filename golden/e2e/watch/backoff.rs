//! The request rate to a failing server.
//!
//! client-go's backoff is 0.8, 1.6, 3.2 … 30 s with a jitter of up to 100 %, reset by two minutes without failure
//! (tools/cache/reflector.go).

use std::time::{Duration, Instant};

use golden::apiserver::{Fault, Request, Requests};

use super::{SERVICES, SLICES, WEB, World};

/// How long a server is watched.
const WATCHED: Duration = Duration::from_secs(20);

/// In that time client-go makes four or five attempts: their pauses add up to at least 0.8, 2.4, 5.6, 12 and 24.8 s.
const MOST: usize = 6;

#[track_caller]
fn watch_requests(world: &World) {
    let start = Instant::now();
    world.within(WATCHED * 2, "the time is over", || start.elapsed() >= WATCHED);
}

/// The attempts are few, and their pauses grow as client-go's.
#[track_caller]
fn assert_backed_off(attempts: &[Request], what: &str) {
    assert!((2..=MOST).contains(&attempts.len()), "{} {what}: {attempts:#?}", attempts.len());
    for (turn, pair) in attempts.windows(2).enumerate().skip(1) {
        let pause = pair[1].received - pair[0].received;
        let least = Duration::from_millis(790) * 2_u32.pow(u32::try_from(turn - 1).expect("few"));
        assert!(pause >= least, "{pause:?} between {what} {turn} and the next, not {least:?}: {attempts:#?}");
    }
}

fn lists(world: &World, path: &str) -> Vec<Request> {
    world.requests(path).into_iter().filter(|request| !request.is_watch()).collect()
}

fn watches(world: &World, path: &str) -> Vec<Request> {
    world.requests(path).into_iter().filter(|request| request.is_watch() && !request.is_streaming_list()).collect()
}

fn streams(world: &World, path: &str) -> Vec<Request> {
    world.requests(path).into_iter().filter(Request::is_streaming_list).collect()
}

#[track_caller]
fn assert_logged(world: &World, kind: &str) {
    if World::is_upstreams() {
        return;
    }
    let log = world.node.log();
    let logged = log.lines().filter(|line| line.starts_with(['W', 'E']) && line.contains(kind)).count();
    assert!(logged >= 1, "it is logged: {log}");
    assert!(logged <= 4 * MOST, "but not {logged} times: {log}");
}

#[test]
fn server_that_answers_410_after_each_list_is_retried_with_backoff() {
    let mut world = World::new();
    world.api.refuse_streaming_lists(true);
    world.api.inject(Fault::ErrorEvent(410).on(Requests::Watches));
    world.start();
    watch_requests(&world);
    for (path, kind) in [(SERVICES, "Services"), (SLICES, "EndpointSlices")] {
        assert_backed_off(&lists(&world, path), "lists");
        assert_logged(&world, kind);
    }
    world.node.until("the lists count all the same", || !world.node.endpoints(WEB).is_empty());
}

#[test]
fn server_that_answers_410_after_each_streamed_list_is_retried_with_backoff() {
    let mut world = World::new();
    world.api.inject(Fault::EndAfterList(Some(410)).on(Requests::StreamedLists));
    world.start();
    watch_requests(&world);
    for (path, kind) in [(SERVICES, "Services"), (SLICES, "EndpointSlices")] {
        assert_backed_off(&streams(&world, path), "streamed lists");
        assert_logged(&world, kind);
    }
}

/// client-go lists again after a watch of less than a second without an event.
#[test]
fn server_that_ends_each_watch_at_once_is_retried_with_backoff() {
    let mut world = World::new();
    world.api.refuse_streaming_lists(true);
    world.api.inject(Fault::EndAtOnce.on(Requests::Watches));
    world.start();
    watch_requests(&world);
    for (path, kind) in [(SERVICES, "Services"), (SLICES, "EndpointSlices")] {
        assert_backed_off(&watches(&world, path), "watches");
        assert!(lists(&world, path).len() <= MOST);
        assert_logged(&world, kind);
    }
    world.node.until("the lists count all the same", || !world.node.endpoints(WEB).is_empty());
}

#[test]
fn server_that_ends_each_streamed_list_after_its_bookmark_is_retried_with_backoff() {
    let mut world = World::new();
    world.api.inject(Fault::EndAfterList(None).on(Requests::StreamedLists));
    world.api.inject(Fault::EndAtOnce.on(Requests::Watches));
    world.start();
    watch_requests(&world);
    for (path, kind) in [(SERVICES, "Services"), (SLICES, "EndpointSlices")] {
        let asked = world.requests(path);
        assert!((2..=2 * MOST).contains(&asked.len()), "{asked:#?}");
        assert_logged(&world, kind);
    }
    world.node.until("the lists count all the same", || !world.node.endpoints(WEB).is_empty());
}

#[test]
fn server_that_refuses_each_watch_is_retried_with_backoff() {
    for fault in [Fault::Refuse(410), Fault::Refuse(403), Fault::Refuse(500), Fault::HangUp] {
        if World::is_upstreams() && fault == Fault::HangUp {
            // It repeats the request itself, ten times in ten seconds (rest/with_retry.go).
            continue;
        }
        let mut world = World::new();
        world.api.refuse_streaming_lists(true);
        world.api.inject(fault.on(Requests::Watches).of("Service"));
        world.start();
        watch_requests(&world);
        let asked = watches(&world, SERVICES);
        assert!((2..=MOST).contains(&asked.len()), "{asked:#?}");
        assert!(lists(&world, SERVICES).len() <= MOST);
        assert_logged(&world, "Services");
    }
}

#[test]
fn server_that_refuses_each_list_is_retried_with_backoff() {
    let mut world = World::new();
    world.api.inject(Fault::Refuse(500).on(Requests::All).of("Service"));
    world.api.inject(Fault::TimedOut.on(Requests::All).of("EndpointSlice"));
    world.start();
    watch_requests(&world);
    for (path, kind) in [(SERVICES, "Services"), (SLICES, "EndpointSlices")] {
        assert_backed_off(&lists(&world, path), "lists");
        assert_logged(&world, kind);
    }
}
