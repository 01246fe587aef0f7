//! Streamed lists, plain lists and their pages.

use super::*;

#[tokio::test(start_paused = true)]
async fn streamed_list_stays_open_as_the_watch() {
    let then = [event("MODIFIED", &service("a", 8)), event("DELETED", &service("b", 9)), BodyStep::Hang];
    let outcome = Reflected::new(move |_, _| streamed(&then)).after(SECONDS(100)).await;
    assert_eq!(outcome.letters(), "S");
    assert_eq!(outcome.versions(), [""]);
    assert_eq!(outcome.events, ["listing", "+a", "-b", "listed"]);
    assert!(outcome.streams && outcome.troubles.is_empty());
}

#[tokio::test(start_paused = true)]
async fn plain_list_follows_at_once_when_a_streamed_list_fails() {
    let failures: Vec<(&str, ScriptedReply, u64)> = vec![
        ("400", ScriptedReply::Status(400, "{}"), 0),
        ("403", ScriptedReply::Status(403, "{}"), 0),
        ("404", ScriptedReply::Status(404, "404 page not found"), 0),
        ("422", ScriptedReply::Status(422, "{}"), 0),
        (
            "500",
            ScriptedReply::Status(500, r#"{"kind":"Status","message":"RequestWatchProgress is disabled","code":500}"#),
            0,
        ),
        ("502", ScriptedReply::Status(502, "<html><body>Bad Gateway</body></html>"), 0),
        ("ERROR event", ScriptedReply::Body(vec![error_event(500, "InternalError"), BodyStep::Hang]), 0),
        ("closed at once", ScriptedReply::Body(vec![]), 0),
        ("closed without bookmark", ScriptedReply::Body(vec![event("ADDED", &service("a", 1))]), 0),
        ("no bookmark", ScriptedReply::Body(vec![event("ADDED", &service("a", 1)), BodyStep::Hang]), 1),
        ("silence", ScriptedReply::Body(vec![BodyStep::Hang]), 1),
        ("garbage", ScriptedReply::Body(vec![BodyStep::Bytes("<html>".into()), BodyStep::Hang]), 0),
    ];
    for (name, failure, seconds) in failures {
        let script = move |path: &str, _| match (is_stream(path), is_watch(path)) {
            (true, _) => failure.clone(),
            (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
            (false, false) => ScriptedReply::Body(list(7, "", &["a"])),
        };
        let outcome = Reflected::new(script).after(SECONDS(60)).await;
        assert_eq!(outcome.letters(), "SLW", "{name}");
        assert_eq!(outcome.versions(), ["", "0", "7"], "{name}");
        assert_eq!(outcome.requests[1].0.as_secs(), seconds, "{name}");
        assert!(!outcome.streams, "{name}: it stays with plain lists");
        assert_eq!(outcome.events.last().map(String::as_str), Some("listed"), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn broken_connection_falls_back_to_a_plain_list_and_streaming_stays_usable() {
    let script = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Body(vec![event("ADDED", &service("a", 1)), BodyStep::Break]),
        (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
        (false, false) => ScriptedReply::Body(list(7, "", &["a"])),
    };
    let outcome = Reflected::new(script).after(SECONDS(10)).await;
    assert_eq!(outcome.letters(), "SLW");
    assert!(outcome.streams);
}

#[tokio::test(start_paused = true)]
async fn pages_follow_continue_tokens_and_an_expired_token_lists_everything_at_once() {
    let script = |path: &str, _| match () {
        () if is_stream(path) => ScriptedReply::Status(400, "{}"),
        () if is_watch(path) => ScriptedReply::Body(vec![BodyStep::Hang]),
        () if path.contains("continue=two") => ScriptedReply::Body(list(7, "three", &["b"])),
        () if path.contains("continue=three") => {
            ScriptedReply::Status(410, r#"{"kind":"Status","reason":"Expired","code":410}"#)
        }
        () if path.contains("limit=500") => ScriptedReply::Body(list(7, "two", &["a"])),
        () => ScriptedReply::Body(list(9, "", &["a", "c"])),
    };
    let outcome = Reflected::new(script).after(SECONDS(20)).await;
    assert_eq!(outcome.letters(), "SLLLLW");
    assert_eq!(outcome.versions(), ["", "0", "", "", "0", "9"]);
    assert!(outcome.requests[2].1.contains("continue=two&"));
    assert!(!outcome.requests[4].1.contains("limit="));
    assert_eq!(outcome.events, ["listing", "+a", "+c", "listed"]);
}

#[tokio::test(start_paused = true)]
async fn object_without_a_name_is_skipped_and_nothing_is_deleted() {
    let nameless = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[{},"#;
    let plain = ScriptedReply::Body(vec![BodyStep::Bytes(format!("{nameless}{}]}}", service("a", 1)))]);
    let script = move |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Status(400, "{}"),
        (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
        (false, false) => plain.clone(),
    };
    let outcome = Reflected::new(script).after(SECONDS(20)).await;
    assert_eq!((&*outcome.letters(), outcome.troubles.len()), ("SLW", 0));
    assert_eq!(outcome.events, ["listing", "+a", "listed in part"]);
    let stream = [event("ADDED", &service("a", 1)), event("ADDED", "{}"), bookmark(7, true), BodyStep::Hang];
    let outcome = Reflected::new(move |_, _| ScriptedReply::Body(stream.to_vec())).after(SECONDS(20)).await;
    assert_eq!(outcome.letters(), "S");
    assert_eq!(outcome.events, ["listing", "+a", "listed in part"]);
}

#[tokio::test(start_paused = true)]
async fn slow_list_completes_while_bytes_arrive_and_a_stalled_one_times_out() {
    let slow = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Status(400, "{}"),
        (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
        (false, false) => {
            let [BodyStep::Bytes(text)] = &list(7, "", &["a"])[..] else { panic!("one piece") };
            let pieces = text.as_bytes().chunks(40).map(|piece| BodyStep::Bytes(String::from_utf8_lossy(piece).into()));
            ScriptedReply::Body(pieces.flat_map(|piece| [piece, BodyStep::Pause(SECONDS(20))]).collect())
        }
    };
    let outcome = Reflected::new(slow).after(SECONDS(600)).await;
    assert_eq!(outcome.letters(), "SLW");
    assert!(outcome.requests[2].0 > SECONDS(60), "{:?}", outcome.requests[2].0);
    let stalled = |path: &str, _| match is_stream(path) {
        true => ScriptedReply::Status(400, "{}"),
        false => ScriptedReply::Body(vec![BodyStep::Bytes(r#"{"items":["#.into()), BodyStep::Hang]),
    };
    let outcome = Reflected::new(stalled).after(SECONDS(50)).await;
    assert_eq!(outcome.troubles, ["http://127.0.0.1:1: no bytes of a list for 30s"]);
    assert!(!outcome.events.contains(&"listed".to_owned()));
}
