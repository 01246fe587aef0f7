//! The client against an API server that falls silent.

use golden::apiserver::{ApiServer, Pace};
use golden::sample::node;

use super::*;
use crate::config::{File, settings};

#[test]
fn a_connection_that_falls_silent_is_given_up() {
    assert!(SILENCE > Duration::from_secs(60) * 3 / 2, "bookmarks come each minute");
    let server = ApiServer::start();
    server.apply(node("node-a", "zone-a"));
    let settings = settings(File::default().complete(), "node-a").expect("defaults");
    let metrics = Metrics::new("iptables").expect("metrics");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let clients = clients(&settings, &server.url(), &metrics, Duration::from_millis(300)).await.expect("clients");
        let config = watcher::Config::default().timeout(300).streaming_lists();
        let mut events = watcher::watcher(Api::<Object<NodeKind>>::all(clients.objects), config).boxed();
        while !matches!(events.try_next().await, Ok(Some(Event::InitDone))) {}
        server.set_pace(Pace::Silent);
        let error = tokio::time::timeout(Duration::from_secs(30), events.try_next()).await.expect("it is noticed");
        let error = error.expect_err("it is an error");
        assert!(matches!(error, watcher::Error::WatchFailed(_)) && timed_out(&error), "{}", causes(&error));
    });
}
