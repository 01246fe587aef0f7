//! Watches: resuming, expired versions, broken events, silence.

use super::*;

#[tokio::test(start_paused = true)]
async fn watch_resumes_from_the_last_version_seen() {
    for end in [BodyStep::Break, BodyStep::Pause(Duration::ZERO)] {
        let script = move |path: &str, _| {
            let events =
                [event("MODIFIED", &service("a", 12)), bookmark(15, false), BodyStep::Pause(SECONDS(30)), end.clone()];
            if is_stream(path) { streamed(&events) } else { ScriptedReply::Body(vec![BodyStep::Hang]) }
        };
        let outcome = Reflected::new(script).after(SECONDS(40)).await;
        assert_eq!(outcome.letters(), "SW");
        assert_eq!(outcome.versions(), ["", "15"]);
        assert!(outcome.troubles.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn expired_version_lists_from_the_last_version_and_then_from_the_newest() {
    let script = |path: &str, count| match count {
        0 => streamed(&[BodyStep::Pause(SECONDS(5)), error_event(410, "Expired")]),
        1 => ScriptedReply::Status(
            504,
            r#"{"kind":"Status","message":"Too large resource version: 7, current: 3","code":504}"#,
        ),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    let outcome = Reflected::new(script).after(SECONDS(60)).await;
    assert_eq!(outcome.letters(), "SSS");
    assert_eq!(outcome.versions(), ["", "7", ""]);
    assert!(outcome.requests[2].0 - outcome.requests[1].0 < SECONDS(1), "at once");
}

#[tokio::test(start_paused = true)]
async fn undecodable_event_starts_a_new_list() {
    let script = |path: &str, count| match count {
        0 => streamed(&[event("MODIFIED", "7"), BodyStep::Hang]),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    assert_eq!(Reflected::new(script).after(SECONDS(20)).await.letters(), "SS");
}

#[tokio::test(start_paused = true)]
async fn watch_refused_repeatedly_starts_a_new_list() {
    // A real server's response to a version that is not a number.
    let script = |path: &str, count| match count {
        0 => streamed(&[BodyStep::Pause(SECONDS(5))]),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => ScriptedReply::Status(500, r#"{"kind":"Status","message":"strconv.ParseUint: parsing \"x\"","code":500}"#),
    };
    assert_eq!(Reflected::new(script).after(SECONDS(60)).await.letters(), "SWWWS");
}

#[tokio::test(start_paused = true)]
async fn truncated_event_starts_a_new_list() {
    let script = |path: &str, count| match count {
        0 => streamed(&[
            BodyStep::Bytes("{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\n".into()),
            event("MODIFIED", &service("a", 9)),
            BodyStep::Hang,
        ]),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    assert_eq!(Reflected::new(script).after(SECONDS(20)).await.letters(), "SS");
}

#[tokio::test(start_paused = true)]
async fn silent_watch_ends_when_bookmarks_stop_and_the_version_is_unknown() {
    let silent = |newest: Option<u32>| {
        let then = [bookmark(8, false), BodyStep::Hang];
        move |path: &str, _| match newest {
            _ if is_stream(path) => streamed(&then),
            Some(newest) if !is_watch(path) => {
                assert!(path.contains("limit=1") && !path.contains("resourceVersion"), "{path}");
                ScriptedReply::Body(list(newest, "", &["a"]))
            }
            _ => ScriptedReply::Body(vec![BodyStep::Hang]),
        }
    };
    // The newest version cannot be read, or is an older one, as of an etcd that was restored.
    for newest in [None, Some(7)] {
        let outcome = Reflected::new(silent(newest)).after(SECONDS(200)).await;
        assert_eq!(outcome.letters(), "SLS", "{newest:?}");
        assert_eq!(outcome.troubles, ["http://127.0.0.1:1: no event or bookmark for 120s"]);
    }
    // A kind that rests: the watch goes on, and nothing is listed.
    let outcome = Reflected::new(silent(Some(8))).after(SECONDS(500)).await;
    assert_eq!(outcome.letters(), "SLWLWLWLW");
    assert_eq!(outcome.troubles, [""; 0]);
    // A server without bookmarks has until its own timeout.
    let outcome = Reflected::new(|_, _| streamed(&[BodyStep::Hang])).after(SECONDS(600)).await;
    assert_eq!(outcome.letters(), "S");
}
