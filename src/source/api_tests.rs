//! The client against an API server that falls silent.

use std::collections::BTreeSet;
use std::sync::Arc;

use golden::apiserver::{ApiServer, Pace};
use golden::sample::node;
use proxier::IpFamily;
use proxier::proxier::Message;

use super::*;
use crate::client::{connect, kube_client};
use crate::config::{File, settings};
use crate::health::Health;
use crate::node::News;
use crate::source::Families;

#[test]
fn a_server_that_never_goes_on_with_a_list_is_asked_again() {
    let server = ApiServer::start();
    server.apply(node("node-a", "zone-a"));
    server.set_pace(Pace::Silent);
    let settings = settings(File::default().complete(), "node-a").expect("defaults");
    let metrics = Metrics::new("iptables").expect("metrics");
    let (changes, listed) = proxier::mailbox::mailbox();
    let (news, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut families = Families::default();
    families.insert(IpFamily::V4, changes);
    let health = Arc::new(Health::new(Duration::from_secs(30), true));
    let sink = || Sink::new(&settings, families.clone(), news.clone(), Arc::clone(&health));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = connect(&settings, &server.url(), &metrics).await.expect("clients").objects;
        let client = kube_client(client);
        let sinks = [sink(), sink(), sink(), sink()];
        let watches = start_with(client, &settings, None, sinks, Duration::from_millis(300));
        let asked = || server.requests().iter().filter(|request| request.is_watch()).count();
        let seen = async {
            // Of three kinds, each twice.
            while asked() < 6 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let trouble = |news| matches!(news, News::Trouble(_, said) if said == "the API server does not go on");
            assert!(told.try_recv().is_ok_and(trouble));
            server.set_pace(Pace::Normal);
            let mut lists = BTreeSet::new();
            while lists != BTreeSet::from([Kind::Service, Kind::EndpointSlice]) {
                lists.extend(std::iter::from_fn(|| listed.try_recv().ok()).filter_map(|mail| match mail.message {
                    Message::Change(Change::Listed(kind)) => Some(kind),
                    _ => None,
                }));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            end = watches => panic!("{end}"),
            seen = tokio::time::timeout(Duration::from_secs(60), seen) => seen.expect("it is asked again"),
        }
    });
}
