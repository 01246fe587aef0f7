//! Events sent to the test API server.

use golden::apiserver::ApiServer;
use serde_json::{Value, json};

use super::*;

const QUICK: EventRetryPolicy = EventRetryPolicy {
    attempts: 50,
    backoff: Duration::from_millis(20),
    response_timeout: LIMIT,
    series_window: Duration::from_millis(1),
};
const LIMIT: Duration = Duration::from_secs(20);

fn service() -> NamespacedName {
    NamespacedName::new("shop", "web")
}

/// A sender whose queue is being published.
fn publishing(api: &ApiServer, policy: EventRetryPolicy) -> EventSender {
    let client = Client::try_from(kube::Config::new(api.url().parse().expect("a URL"))).expect("a client");
    let (events, queue) = event_queue();
    tokio::spawn(async move { queue.publish(client, "node-a", "host-a", policy).await });
    events
}

/// The events with a reason that the API server has, after a flush.
async fn published(api: &ApiServer, events: &EventSender, reason: &str) -> Vec<Value> {
    events.flush(LIMIT).await;
    api.all("Event").into_iter().filter(|event| event["reason"] == reason).collect()
}

#[tokio::test]
async fn events_have_kube_proxys_form() {
    let api = ApiServer::start();
    let events = publishing(&api, EventRetryPolicy::default());
    events.starting();
    events.health_check_failed(&service(), "port 30000 is taken".to_owned());
    let starting = published(&api, &events, "Starting").await;
    let [starting] = &starting[..] else { panic!("{starting:?}") };
    for (field, value) in [
        ("/metadata/namespace", json!("default")),
        ("/type", json!("Normal")),
        ("/action", json!("StartKubeProxy")),
        ("/reportingController", json!("kube-proxy")),
        ("/reportingInstance", json!("kube-proxy-host-a")),
        ("/regarding", json!({"apiVersion": "v1", "kind": "Node", "name": "node-a"})),
    ] {
        assert_eq!(starting.pointer(field), Some(&value), "{field}: {starting}");
    }
    assert_eq!(starting.get("note"), None);
    let name = starting["metadata"]["name"].as_str().unwrap_or_default();
    let nanoseconds = name.strip_prefix("node-a.").map(|hex| u64::from_str_radix(hex, 16));
    assert!(matches!(nanoseconds, Some(Ok(1_700_000_000_000_000_000..))), "{name}");
    // API servers require microseconds.
    let time = starting["eventTime"].as_str().unwrap_or_default();
    assert_eq!(time.len(), "2026-11-24T22:00:00.000000Z".len(), "{time}");
    let failed = published(&api, &events, "FailedToStartServiceHealthcheck").await;
    assert_eq!(failed[0]["metadata"]["namespace"], "shop");
    assert_eq!(
        failed[0]["regarding"],
        json!({"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web"})
    );
    assert_eq!((&failed[0]["type"], &failed[0]["action"]), (&json!("Warning"), &json!("Listen")));
    assert_eq!(failed[0]["note"], "port 30000 is taken");
}

#[tokio::test]
async fn repeated_event_increments_the_series() {
    let api = ApiServer::start();
    let events = publishing(&api, QUICK);
    for count in 1..=3 {
        events.port_failed("FailedToStartMetricServer", format!("try {count}"));
        let same = published(&api, &events, "FailedToStartMetricServer").await;
        assert_eq!(same.len(), 1, "{same:?}");
        let expected = if count == 1 { Value::Null } else { json!(count) };
        assert_eq!(same[0]["series"]["count"], expected);
        tokio::time::sleep(2 * QUICK.series_window).await;
    }
    // An event that the server no longer has starts a new series.
    let name = published(&api, &events, "FailedToStartMetricServer").await[0]["metadata"]["name"].clone();
    api.delete("Event", "default", name.as_str().unwrap_or_default());
    events.port_failed("FailedToStartMetricServer", "again".to_owned());
    let anew = published(&api, &events, "FailedToStartMetricServer").await;
    assert!(anew.len() == 1 && anew[0]["metadata"]["name"] != name && anew[0]["series"].is_null(), "{anew:?}");
}

#[tokio::test]
async fn repeated_event_is_rate_limited() {
    let api = ApiServer::start();
    let events = publishing(&api, EventRetryPolicy::default());
    for _ in 0..50 {
        events.health_check_failed(&service(), "port 30000 is taken".to_owned());
    }
    assert_eq!(published(&api, &events, "FailedToStartServiceHealthcheck").await.len(), 1);
    assert_eq!(api.requests().len(), 1);
}

#[tokio::test]
async fn a_server_that_is_away_is_tried_again_and_one_that_refuses_is_not() {
    let api = ApiServer::start();
    let events = publishing(&api, QUICK);
    api.down();
    events.starting();
    events.flush(5 * QUICK.backoff).await;
    api.up();
    assert_eq!(published(&api, &events, "Starting").await.len(), 1);
    for code in [403, 500] {
        api.clear_requests();
        api.fail_next_of("Event", 1, code);
        events.port_failed("FailedToStartMetricServer", String::new());
        assert_eq!(published(&api, &events, "FailedToStartMetricServer").await, [] as [Value; 0]);
        assert_eq!(api.requests().len(), 1);
        tokio::time::sleep(2 * QUICK.series_window).await;
    }
    // Later events are still published.
    events.health_check_failed(&service(), String::new());
    assert_eq!(published(&api, &events, "FailedToStartServiceHealthcheck").await.len(), 1);
}

#[tokio::test]
async fn flush_when_the_server_does_not_answer_ends_within_its_limit() {
    let api = ApiServer::start();
    let events = publishing(&api, EventRetryPolicy::default());
    api.down();
    for _ in 0..10 * QUEUE_CAPACITY {
        events.starting();
    }
    let start = Instant::now();
    events.flush(Duration::from_millis(100)).await;
    assert!(start.elapsed() < LIMIT);
}
