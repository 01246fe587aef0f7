//! Which connections to endpoints that are gone end, and when: over tables that are values, with time that tests set.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netfilter::kernel::Host;
use netfilter::testing::{FakeClientProbe, FakeConntrack, FakeHost};
use netfilter::{Flow, IpFamily, Tuple};
use proxier::ender::{ConnectionEnder, EnderKernel, MAX_PER_PASS};
use proxier::model::annotations::END_STALE_CONNECTIONS;
use proxier::model::{NamespacedName, NodePortAddresses, Scope};
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translator};
use serde_json::json;

const GRACE: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);
const NODE_IP: &str = "192.168.0.1";
const LOOSE: &str = "net/netfilter/nf_conntrack_tcp_loose";

/// An ender after the syncs of a model that a test changes.
struct World {
    translator: Translator,
    tracker: Tracker,
    ender: ConnectionEnder,
    table: FakeConntrack,
    clients: FakeClientProbe,
    host: FakeHost,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let (table, clients, host) = (FakeConntrack::default(), FakeClientProbe::default(), FakeHost::default());
        host.set_addresses([NODE_IP.parse().expect("an address")]);
        let kernel = EnderKernel {
            table: Box::new(table.clone()),
            host: Box::new(host.clone()),
            clients: Box::new(clients.clone()),
        };
        let ender = ConnectionEnder::new(IpFamily::V4, NodePortAddresses::default(), kernel);
        let (translator, tracker) = (Translator::new(objects::NODE, false), Tracker::default());
        Self { translator, tracker, ender, table, clients, host, now: Instant::now() }
    }

    fn apply(&mut self, kind: Kind, object: serde_json::Value) {
        let translated = self.translator.applied(objects::decoded(kind, object)).expect("a valid object");
        for (_, change) in translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    /// A Service with node port 30000 + `number`, at 10.96.0.`number` and at external IP 203.0.113.9.
    fn service(&mut self, name: &str, number: u16, protocol: &str, asks: bool) {
        let address = format!("10.96.0.{number}").parse().expect("an address");
        let mut service = objects::service("ns", name, address);
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["protocol"] = json!(protocol);
        service["spec"]["ports"][0]["port"] = json!(number);
        service["spec"]["ports"][0]["nodePort"] = json!(30_000 + number);
        service["spec"]["externalIPs"] = json!(["203.0.113.9"]);
        service["metadata"]["annotations"] = json!({ END_STALE_CONNECTIONS: asks.to_string() });
        self.apply(Kind::Service, service);
    }

    fn endpoints(&mut self, service: &str, protocol: &str, endpoints: &[&str]) {
        let ips: Vec<_> = endpoints.iter().map(|ip| ip.parse().expect("an address")).collect();
        let mut slice = objects::slice("ns", service, service, &ips);
        slice["ports"][0]["protocol"] = json!(protocol);
        self.apply(Kind::EndpointSlice, slice);
    }

    /// A sync of what changed.
    fn sync(&mut self) {
        let scope = self.tracker.take_scope();
        assert!(matches!(scope, Scope::Changed(_)));
        self.ender.synced(&self.tracker.snapshot(NODE_IP.parse().expect("an address")), &scope, self.now);
    }

    /// The time until the next pass.
    fn due(&self) -> Option<Duration> {
        self.ender.due().map(|due| due.duration_since(self.now))
    }

    /// Lets time pass until the next pass is due, and runs it; returns the number of ended connections.
    fn pass(&mut self) -> usize {
        self.now = self.ender.due().expect("a pass is due");
        self.ender.end(&self.tracker.snapshot(NODE_IP.parse().expect("an address")), self.now, &mut |_| {})
    }

    /// A synced Service `web` that asks, at port 80, with these endpoints; its first pass has run.
    fn web(endpoints: &[&str]) -> Self {
        let mut world = Self::new();
        world.service("web", 80, "TCP", true);
        world.endpoints("web", "TCP", endpoints);
        world.sync();
        assert_eq!(world.pass(), 0);
        world.now += 10 * SECOND;
        world
    }

    fn flow(&self, protocol: u8, client_port: u16, to: &str, endpoint: &str) -> Flow {
        let [to, endpoint]: [SocketAddr; 2] = [to, endpoint].map(|text| text.parse().expect("an address"));
        let client = SocketAddr::from(([10, 0, 0, 1], client_port));
        let (original, reply) =
            (Tuple { source: client, destination: to }, Tuple { source: endpoint, destination: client });
        let flow = Flow { protocol, original, reply };
        self.table.add(flow);
        flow
    }
}

#[test]
fn connections_to_a_lost_endpoint_end_and_their_clients_are_probed() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6"]);
    let gone = ["10.96.0.80:80", "203.0.113.9:80", "192.168.0.1:30080"].map(|to| world.flow(6, 1, to, "10.0.0.5:8080"));
    let kept = [
        world.flow(6, 2, "10.96.0.80:80", "10.0.0.6:8080"),
        // Another port, another node's port, another protocol, and a connection that rules did not redirect.
        world.flow(6, 3, "10.96.0.80:443", "10.0.0.5:8080"),
        world.flow(6, 4, "192.168.0.2:30080", "10.0.0.5:8080"),
        world.flow(17, 5, "10.96.0.80:80", "10.0.0.5:8080"),
        world.flow(6, 6, "203.0.113.9:80", "203.0.113.9:80"),
    ];
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    assert_eq!(world.due(), Some(GRACE));
    assert_eq!(world.pass(), gone.len());
    assert_eq!(world.table.flows(), kept);
    assert_eq!(world.clients.probed(), gone);
    assert_eq!(world.due(), None);
}

#[test]
fn services_that_do_not_ask_or_lose_nothing_cause_no_pass() {
    let mut world = World::new();
    world.service("plain", 80, "TCP", false);
    world.service("dns", 53, "UDP", true);
    world.endpoints("plain", "TCP", &["10.0.0.5"]);
    world.endpoints("dns", "UDP", &["10.0.0.5"]);
    world.sync();
    world.endpoints("plain", "TCP", &["10.0.0.6"]);
    world.endpoints("dns", "UDP", &["10.0.0.6"]);
    world.sync();
    assert_eq!((world.due(), world.table.passes()), (None, 0));

    let mut world = World::web(&["10.0.0.5"]);
    let passes = world.table.passes();
    world.endpoints("web", "TCP", &["10.0.0.5", "10.0.0.6"]);
    world.sync();
    assert_eq!((world.due(), world.table.passes()), (None, passes));
}

#[test]
fn a_service_that_begins_to_ask_loses_its_old_stale_connections() {
    let mut world = World::new();
    world.service("web", 80, "TCP", false);
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    world.flow(6, 1, "10.96.0.80:80", "10.0.0.5:8080");
    world.service("web", 80, "TCP", true);
    world.sync();
    assert_eq!(world.pass(), 1);
}

#[test]
fn an_endpoint_that_is_back_before_the_pass_keeps_its_connections() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6"]);
    world.flow(6, 1, "10.96.0.80:80", "10.0.0.5:8080");
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    // Not synced yet: the model counts as well as the rules.
    world.endpoints("web", "TCP", &["10.0.0.5", "10.0.0.6"]);
    assert_eq!(world.pass(), 0);
    assert_eq!(world.table.flows().len(), 1);
}

#[test]
fn each_service_waits_for_its_own_endpoints_to_come_back() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6"]);
    world.service("late", 81, "TCP", true);
    world.endpoints("late", "TCP", &["10.0.0.5", "10.0.0.6"]);
    world.sync();
    assert_eq!(world.pass(), 0);
    world.now += 10 * SECOND;
    world.flow(6, 1, "10.96.0.80:80", "10.0.0.5:8080");
    world.flow(6, 2, "10.96.0.81:81", "10.0.0.5:8080");
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    world.now += GRACE - Duration::from_millis(1);
    world.endpoints("late", "TCP", &["10.0.0.6"]);
    world.sync();
    assert_eq!(world.pass(), 1);
    assert_eq!(world.due(), Some(SECOND));
    assert_eq!(world.pass(), 1);
}

#[test]
fn a_service_that_loses_another_endpoint_waits_again_without_a_pass() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6", "10.0.0.7"]);
    let passes = world.table.passes();
    world.flow(6, 1, "10.96.0.80:80", "10.0.0.5:8080");
    world.endpoints("web", "TCP", &["10.0.0.6", "10.0.0.7"]);
    world.sync();
    world.now += GRACE / 2;
    world.endpoints("web", "TCP", &["10.0.0.7"]);
    world.sync();
    assert_eq!((world.pass(), world.table.passes()), (0, passes));
    assert_eq!(world.due(), Some(GRACE / 2));
    assert_eq!(world.pass(), 1);
}

#[test]
fn passes_are_a_second_apart_and_each_ends_a_limited_number() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6"]);
    let flows = u16::try_from(2 * MAX_PER_PASS + 1).expect("few");
    for port in 0..flows {
        world.flow(6, 10_000 + port, "10.96.0.80:80", "10.0.0.5:8080");
    }
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    assert_eq!(world.pass(), MAX_PER_PASS);
    assert_eq!(world.due(), Some(SECOND));
    assert_eq!(world.pass(), MAX_PER_PASS);
    assert_eq!(world.due(), Some(SECOND));
    assert_eq!(world.pass(), 1);
    assert_eq!((world.due(), world.clients.probed().len()), (None, usize::from(flows)));
    // A change right after a pass waits for the second to be over.
    world.endpoints("web", "TCP", &["10.0.0.7"]);
    world.sync();
    assert_eq!(world.due(), Some(SECOND));
}

#[test]
fn without_endpoints_connections_stay_until_one_can_reset_them() {
    let mut world = World::web(&["10.0.0.5"]);
    world.flow(6, 1, "10.96.0.80:80", "10.0.0.5:8080");
    world.tracker.apply(Change::Slice(NamespacedName::new("ns", "web"), None));
    world.sync();
    assert_eq!(world.due(), None);
    world.endpoints("web", "TCP", &["10.0.0.7"]);
    world.sync();
    assert_eq!(world.pass(), 1);
}

#[test]
fn an_address_that_a_service_shares_with_one_that_does_not_ask_keeps_its_connections() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6"]);
    world.service("plain", 81, "TCP", false);
    let mut sharing = objects::service("ns", "sharing", "10.96.0.99".parse().expect("an address"));
    sharing["spec"]["externalIPs"] = json!(["203.0.113.9"]);
    world.apply(Kind::Service, sharing);
    let kept = world.flow(6, 1, "203.0.113.9:80", "10.0.0.5:8080");
    world.flow(6, 2, "10.96.0.80:80", "10.0.0.5:8080");
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    assert_eq!(world.pass(), 1);
    assert_eq!(world.table.flows(), [kept]);
}

#[test]
fn sctp_associations_end_without_a_probe() {
    let mut world = World::new();
    world.service("sigtran", 90, "SCTP", true);
    world.endpoints("sigtran", "SCTP", &["10.0.0.6"]);
    world.flow(132, 1, "10.96.0.90:90", "10.0.0.5:8080");
    world.flow(132, 1, "10.96.0.90:90", "10.0.0.6:8080");
    world.sync();
    assert_eq!(world.pass(), 1);
    assert_eq!((world.table.flows().len(), world.clients.probed()), (1, vec![]));
}

#[test]
fn a_failed_pass_is_repeated_later() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6"]);
    world.flow(6, 1, "10.96.0.80:80", "10.0.0.5:8080");
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    for fail in [FakeConntrack::set_unreadable, FakeConntrack::refuse_deletes] {
        fail(&world.table, true);
        assert_eq!(world.pass(), 0);
        assert_eq!(world.due(), Some(30 * SECOND));
        fail(&world.table, false);
    }
    assert_eq!((world.pass(), world.due()), (1, None));
}

#[test]
fn nothing_is_deleted_while_the_kernel_would_not_redirect_the_next_segment() {
    let mut world = World::web(&["10.0.0.5", "10.0.0.6"]);
    world.flow(6, 1, "10.96.0.80:80", "10.0.0.5:8080");
    world.host.set_sysctl(LOOSE, 0).expect("a fake host");
    world.endpoints("web", "TCP", &["10.0.0.6"]);
    world.sync();
    assert_eq!(world.pass(), 0);
    assert_eq!((world.due(), world.table.flows().len()), (Some(30 * SECOND), 1));
    world.host.set_sysctl(LOOSE, 1).expect("a fake host");
    assert_eq!(world.pass(), 1);
}
