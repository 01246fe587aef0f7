//! The Node's lifecycle, with paused time.

use proxier::mailbox::Message;
use proxier::mailbox::{Receiver, mailbox};
use proxier::track::Kind;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::advance;

use super::*;
use crate::config::{self, KubeProxyConfiguration};

fn settings(local_detector: LocalDetector) -> ValidatedConfig {
    let mut settings = config::validate(KubeProxyConfiguration::default().with_defaults(), "node-a").expect("valid");
    settings.proxier.local_detector = local_detector;
    settings
}

fn info(addresses: &[&str], pod_cidrs: &[&str]) -> NodeInfo {
    NodeInfo {
        addresses: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
        pod_cidrs: pod_cidrs.iter().map(|net| net.parse().expect("a network")).collect(),
        ..NodeInfo::default()
    }
}

/// A node tracker with the mailboxes of its families.
struct TrackedNode {
    news: UnboundedSender<NodeUpdate>,
    received: Vec<Receiver>,
    end: JoinHandle<NodeError>,
}

impl TrackedNode {
    fn new(settings: ValidatedConfig, families: &[IpFamily]) -> Self {
        let (news, updates) = unbounded_channel();
        let (mut all, mut received) = (FamilySenders::default(), Vec::new());
        for family in families {
            let (sender, receiver) = mailbox();
            all.insert(*family, sender);
            received.push(receiver);
        }
        Self { news, received, end: tokio::spawn(track(settings, all, updates)) }
    }

    fn apply(&self, node: NodeInfo) {
        self.news.send(NodeUpdate::Applied(node)).expect("it listens");
    }

    fn listed(&self) {
        self.news.send(NodeUpdate::ListProgress(Change::Listed(Kind::Node))).expect("it listens");
    }

    /// Lets the tracker handle all pending messages.
    async fn settle(&self) {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, time: Duration) {
        self.settle().await;
        advance(time).await;
        self.settle().await;
    }

    /// The changes that the first family received since the last call.
    async fn changes(&self) -> Vec<Change> {
        self.settle().await;
        let changes = std::iter::from_fn(|| self.received[0].try_recv().ok()).map(|mail| match mail.message {
            Message::Change(change) => change,
            other => panic!("{other:?}"),
        });
        changes.collect()
    }

    async fn works(&self) -> bool {
        self.settle().await;
        !self.end.is_finished()
    }

    async fn error(self) -> NodeError {
        self.settle().await;
        assert!(self.end.is_finished(), "it still works");
        self.end.await.expect("no panic")
    }
}

const SECOND: Duration = Duration::from_secs(1);
const BOTH: [IpFamily; 2] = IpFamily::ALL;

#[tokio::test(start_paused = true)]
async fn without_a_node_the_first_sync_runs_after_30_seconds() {
    let running = TrackedNode::new(settings(LocalDetector::ClusterCidr(Vec::new())), &BOTH);
    // There is no deadline before the API server answers.
    running.pass(Duration::from_secs(3600)).await;
    running.listed();
    running.pass(ADDRESS_WAIT + SECOND).await;
    assert!(running.works().await);
    let late = info(&["192.168.0.1"], &[]);
    running.apply(late.clone());
    assert_eq!(running.changes().await, [Change::Listed(Kind::Node), Change::Node(late)]);
}

#[tokio::test(start_paused = true)]
async fn node_cidr_waits_five_minutes_more_and_gives_up() {
    for exists in [true, false] {
        let running = TrackedNode::new(settings(LocalDetector::NodeCidr), &BOTH);
        if exists {
            running.apply(info(&[], &[]));
        }
        running.listed();
        running.pass(ADDRESS_WAIT + SECOND).await;
        running.pass(NETWORK_WAIT - 2 * SECOND).await;
        assert!(running.works().await, "five minutes are not over");
        running.pass(2 * SECOND).await;
        let name = "node-a".to_owned();
        assert_eq!(running.error().await, if exists { NodeError::NoNetwork(name) } else { NodeError::NoNode(name) });
    }
}

#[tokio::test(start_paused = true)]
async fn node_cidr_uses_pod_cidrs_that_arrive_in_time_and_ends_when_they_change() {
    let running = TrackedNode::new(settings(LocalDetector::NodeCidr), &BOTH);
    running.listed();
    running.apply(info(&["192.168.0.1"], &[]));
    running.pass(NETWORK_WAIT - SECOND).await;
    running.apply(info(&["192.168.0.1"], &["10.1.0.0/24", "10.2.0.0/24"]));
    running.pass(2 * NETWORK_WAIT).await;
    // Addresses may change at any time.
    running.apply(info(&["192.168.0.2", "fd00::2"], &["10.1.0.0/24", "10.2.0.0/24"]));
    running.news.send(NodeUpdate::Deleted).expect("it listens");
    assert!(running.works().await);
    running.changes().await;
    // A change of order counts, and is not sent to the families.
    running.apply(info(&["192.168.0.2"], &["10.2.0.0/24", "10.1.0.0/24"]));
    assert_eq!(running.changes().await, []);
    let error = running.error().await;
    assert!(matches!(&error, NodeError::NetworkChanged { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn pod_cidrs_may_change_in_other_modes() {
    let running = TrackedNode::new(settings(LocalDetector::ClusterCidr(Vec::new())), &BOTH);
    running.apply(info(&["192.168.0.1"], &["10.1.0.0/24"]));
    assert_eq!(running.changes().await.len(), 1);
    running.apply(info(&["192.168.0.1"], &[]));
    assert!(running.works().await);
    assert_eq!(running.changes().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_address_decides_which_family_must_work() {
    let only_v4 = || TrackedNode::new(settings(LocalDetector::ClusterCidr(Vec::new())), &[IpFamily::V4]);
    let running = only_v4();
    running.apply(info(&["fd00::1", "192.168.0.1"], &[]));
    assert_eq!(running.changes().await, []);
    assert_eq!(running.error().await, NodeError::Unsupported("IPv6"));
    let running = only_v4();
    running.apply(info(&["192.168.0.1", "fd00::1"], &[]));
    assert!(running.works().await);
    // bindAddress takes precedence over the Node's addresses.
    for (bind, works) in [("192.168.0.9", true), ("fd00::9", false)] {
        let mut settings = settings(LocalDetector::ClusterCidr(Vec::new()));
        settings.proxier.bind_address = Some(bind.parse().expect("an address"));
        let running = TrackedNode::new(settings, &[IpFamily::V4]);
        running.apply(info(&["fd00::1", "192.168.0.1"], &[]));
        assert_eq!(running.works().await, works, "{bind}");
    }
}

#[tokio::test(start_paused = true)]
async fn networks_of_the_other_family_alone_are_fatal_where_nothing_would_be_local() {
    let v6 = || vec!["fd00:1::/64".parse().expect("a network")];
    let node = info(&["192.168.0.1"], &["fd00:1::/64"]);
    for (detector, families, field) in [
        (LocalDetector::NodeCidr, &BOTH[..], Some("node.spec.podCIDRs")),
        (LocalDetector::ClusterCidr(v6()), &BOTH[..1], Some("clusterCIDRs")),
        (LocalDetector::ClusterCidr(v6()), &BOTH[..], None),
        (LocalDetector::ClusterCidr(Vec::new()), &BOTH[..], None),
    ] {
        let running = TrackedNode::new(settings(detector.clone()), families);
        running.apply(node.clone());
        match field {
            Some(field) => {
                let text = running.error().await.to_string();
                assert!(text.starts_with("kube-proxy configuration is incorrect: ") && text.contains(field), "{text}");
            }
            None => assert!(running.works().await, "{detector:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_node_is_waited_for_without_limit() {
    let running = TrackedNode::new(settings(LocalDetector::NodeCidr), &BOTH);
    for (kind, said) in [(Kind::Node, "403"), (Kind::Node, "403"), (Kind::Service, "403"), (Kind::Node, "500")] {
        running.news.send(NodeUpdate::Failed(kind, format!("https://h:1: {said} Forbidden: no"))).expect("it listens");
    }
    running.pass(3600 * SECOND).await;
    assert!(running.works().await, "the right may be given at any time");
    running.listed();
    running.apply(info(&["192.168.50.2"], &["10.244.1.0/24"]));
    assert_eq!(running.changes().await.len(), 2);
    assert!(running.works().await);
}
