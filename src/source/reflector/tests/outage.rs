//! An API server that is down for a long time.

use super::*;

const OUTAGE: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

/// A server that is down for an hour, and then has other objects and no history.
fn server_that_goes_away() -> impl Fn(&str, usize) -> ScriptedReply + Send + 'static {
    let began = Instant::now();
    move |path, _| {
        if began.elapsed() < OUTAGE {
            return streamed(&[BodyStep::Pause(OUTAGE), BodyStep::Break]);
        }
        if began.elapsed() < OUTAGE + HOUR {
            return ScriptedReply::Refused;
        }
        if !is_stream(path) {
            return ScriptedReply::Status(410, r#"{"kind":"Status","reason":"Expired","code":410}"#);
        }
        let list = [event("ADDED", &service("a", 20)), event("ADDED", &service("c", 21)), bookmark(30, true)];
        let changes = [event("DELETED", &service("c", 31)), event("ADDED", &service("d", 32)), BodyStep::Hang];
        ScriptedReply::Body(list.into_iter().chain(changes).collect())
    }
}

/// An hour of simulated time without an API server, whose etcd was compacted meanwhile (golden/faults/README.md).
#[tokio::test(start_paused = true)]
async fn hour_without_a_server_costs_a_request_a_minute_and_the_next_list_and_its_changes_take_effect() {
    let outcome = Reflected::new(server_that_goes_away()).after(OUTAGE + HOUR + SECONDS(180)).await;
    let is_in_outage = |time: Duration| (OUTAGE..OUTAGE + HOUR).contains(&time);
    let requests = outcome.requests.iter().filter(|(time, _)| is_in_outage(*time)).count();
    println!("{requests} requests in an hour; after it: {:?}", &outcome.requests[requests + 1..]);
    // Pauses of 30 to 60 s after the first six.
    assert!((60..=126).contains(&requests), "{requests} requests in an hour");
    let after = outcome.requests.iter().find(|(time, _)| *time >= OUTAGE + HOUR).expect("a request").0;
    assert!(after - OUTAGE - HOUR <= SECONDS(60), "{after:?}");
    assert!(outcome.troubles.len() >= requests, "each failure is reported");
    // The mailbox has only the latest of each object.
    assert_eq!(outcome.events, ["listing", "+a", "-c", "listed", "+d"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_while_the_server_is_away() {
    let outcome = Reflected::new(server_that_goes_away()).after(HOUR).await;
    assert_eq!(outcome.events, ["listing", "+a", "+b", "listed"]);
}
