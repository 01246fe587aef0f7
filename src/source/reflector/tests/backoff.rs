//! Backoff between requests to a failing server.

use super::*;

#[tokio::test(start_paused = true)]
async fn overload_and_refused_connections_are_retried_with_backoff() {
    for failure in [ScriptedReply::Refused, ScriptedReply::Status(429, "{}"), ScriptedReply::Status(401, "{}")] {
        let script = move |_: &str, count| if count < 3 { failure.clone() } else { streamed(&[BodyStep::Hang]) };
        let outcome = Reflected::new(script).after(SECONDS(20)).await;
        assert_eq!(outcome.letters(), "SSSS");
        assert_eq!(outcome.troubles.len(), 3);
        assert!(outcome.requests[3].0 >= Duration::from_millis(800 + 1600 + 3200));
    }
}

#[tokio::test(start_paused = true)]
async fn failing_server_receives_few_requests() {
    // A list, then 410, again and again.
    let gone = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => streamed(&[error_event(410, "Expired")]),
        _ => ScriptedReply::Status(410, "{}"),
    };
    let outcome = Reflected::new(gone).after(SECONDS(20)).await;
    assert!((3..=5).contains(&outcome.letters().len()), "{}", outcome.letters());
    // Watches that end at once are tried again from the version, without a list.
    let closing = |path: &str, _| if is_stream(path) { streamed(&[]) } else { ScriptedReply::Body(vec![]) };
    let outcome = Reflected::new(closing).after(SECONDS(20)).await;
    assert!(outcome.letters().starts_with("SWW") && outcome.letters().len() <= 6, "{}", outcome.letters());
    let short = "http://127.0.0.1:1: the watch ended after";
    assert!(outcome.troubles.iter().all(|said| said.starts_with(short)), "{:?}", outcome.troubles);
    // So are events followed by an end.
    let then = [event("MODIFIED", &service("a", 8))];
    let outcome =
        Reflected::new(
            move |path, _| {
                if is_stream(path) { streamed(&then) } else { ScriptedReply::Body(vec![bookmark(9, false)]) }
            },
        );
    let outcome = outcome.after(SECONDS(20)).await;
    assert!(outcome.letters().len() <= 6, "{}", outcome.letters());
    assert_eq!(outcome.versions()[1..3], ["8", "9"]);
}

#[tokio::test(start_paused = true)]
async fn backoff_resets_after_two_minutes_of_open_watch() {
    let script = |path: &str, count| match count {
        0..5 => ScriptedReply::Status(429, "{}"),
        5 => streamed(&[BodyStep::Pause(SECONDS(300)), error_event(410, "Expired")]),
        _ if is_watch(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    let outcome = Reflected::new(script).after(SECONDS(500)).await;
    let pause = outcome.requests[6].0 - outcome.requests[5].0 - SECONDS(300);
    assert!((800..=1600).contains(&pause.as_millis()), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn lists_repeat_with_backoff_when_watches_are_forbidden() {
    let script = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Status(403, "{}"),
        (false, true) => ScriptedReply::Status(403, "{}"),
        (false, false) => ScriptedReply::Body(list(7, "", &["a"])),
    };
    let letters = Reflected::new(script).after(SECONDS(20)).await.letters();
    assert!(letters.starts_with("SLWLW") && letters.len() <= 12, "{letters}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_from_the_server_is_respected() {
    let busy = r#"{"kind":"Status","message":"busy","details":{"retryAfterSeconds":17},"code":429}"#;
    let script =
        move |_: &str, count| if count == 0 { ScriptedReply::Status(429, busy) } else { streamed(&[BodyStep::Hang]) };
    let outcome = Reflected::new(script).after(SECONDS(60)).await;
    assert_eq!(outcome.requests[1].0.as_secs(), 17);
}
