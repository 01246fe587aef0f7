//! Health, with a clock that the test sets.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::*;

#[derive(Clone, Debug)]
struct Fake(Arc<Mutex<Duration>>, Instant, TimeZone);

impl Fake {
    fn new(zone: TimeZone) -> Self {
        Self(Arc::default(), Instant::now(), zone)
    }

    fn pass(&self, time: Duration) {
        *self.0.lock().expect("unpoisoned") += time;
    }
}

impl Clock for Fake {
    fn instant(&self) -> Instant {
        self.1 + *self.0.lock().expect("unpoisoned")
    }

    fn date(&self) -> Zoned {
        let passed = SignedDuration::try_from(*self.0.lock().expect("unpoisoned")).expect("short");
        let begin: Timestamp = "2026-11-21T04:00:00Z".parse().expect("a time");
        (begin + passed).to_zoned(self.2.clone())
    }
}

const PERIOD: Duration = Duration::from_secs(30);

fn health(node_eligible: bool) -> (Fake, Health) {
    let clock = Fake::new(TimeZone::UTC);
    (clock.clone(), Health::with_clock(PERIOD, node_eligible, Box::new(clock)))
}

fn json(health: &Health, with_node: bool) -> String {
    serde_json::to_string(&health.response(with_node)).expect("JSON")
}

#[test]
fn healthz_turns_503_after_exactly_twice_the_period_and_back_with_the_next_good_sync() {
    let (clock, health) = health(true);
    health.started(IpFamily::V4);
    health.started(IpFamily::V6);
    clock.pass(Duration::from_millis(1500));
    health.queued(IpFamily::V4);
    clock.pass(Duration::from_secs(20));
    // A later change does not make the first one younger.
    health.queued(IpFamily::V4);
    clock.pass(Duration::from_secs(40) - Duration::from_millis(1));
    assert!(health.response(true).ok);
    clock.pass(Duration::from_millis(1));
    assert_eq!(
        json(&health, true),
        "{\"lastUpdated\":\"2026-11-21T04:00:00Z\",\"currentTime\":\"2026-11-21T04:01:01.5Z\",\"nodeEligible\":true,\
         \"healthy\":false,\"status\":{\"IPv4\":{\"lastUpdated\":\"2026-11-21T04:00:00Z\",\"healthy\":false},\
         \"IPv6\":{\"lastUpdated\":\"2026-11-21T04:00:00Z\",\"healthy\":true}}}"
    );
    assert!(!health.response(false).ok && !health.is_live());
    clock.pass(Duration::from_secs(3600));
    health.synced(IpFamily::V4);
    assert!(health.response(true).ok && health.response(false).ok && health.is_live());
    // Without a pending change the family stays healthy.
    clock.pass(Duration::from_secs(360_000));
    assert!(health.response(true).ok);
}

#[test]
fn the_node_counts_for_healthz_only_and_does_not_make_the_proxy_unhealthy() {
    let (clock, health) = health(false);
    assert_eq!(
        json(&health, true),
        "{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"currentTime\":\"2026-11-21T04:00:00Z\",\"nodeEligible\":false,\
         \"healthy\":true}"
    );
    health.started(IpFamily::V6);
    clock.pass(Duration::from_secs(1));
    let (healthz, livez) = (health.response(true), health.response(false));
    assert!(!healthz.ok && healthz.healthy && livez.ok && health.is_live());
    // lastUpdated is the current time at 200, and the latest family's at 503.
    assert_eq!(
        (healthz.last_updated, livez.last_updated),
        ("2026-11-21T04:00:00Z".into(), "2026-11-21T04:00:01Z".into())
    );
    assert_eq!(livez.node_eligible, None);
    health.set_node_eligible(true);
    assert!(health.response(true).ok);
}

#[test]
fn a_family_that_has_not_started_does_not_count() {
    let (clock, health) = health(true);
    health.queued(IpFamily::V4);
    clock.pass(10 * PERIOD);
    assert!(health.response(true).ok);
}

#[test]
fn dates_are_written_as_go_writes_them() {
    let east = Fake::new(TimeZone::fixed(Offset::from_seconds(19_800).expect("an offset")));
    assert_eq!(rfc3339(&east.date()), "2026-11-21T09:30:00+05:30");
    east.pass(Duration::from_nanos(120_000_050));
    assert_eq!(rfc3339(&east.date()), "2026-11-21T09:30:00.12000005+05:30");
}

#[test]
fn thread_that_hangs_turns_both_pages_503_though_no_change_is_known_to_wait() {
    let (clock, health) = health(true);
    let (sender, receiver) = proxier::mailbox::mailbox();
    health.watch_thread(IpFamily::V6, sender.activity());
    health.started(IpFamily::V6);
    assert!(receiver.try_recv().is_err());
    // The thread takes no further message.
    clock.pass(2 * PERIOD + Duration::from_secs(1));
    assert!(!health.response(true).ok && !health.response(false).ok && !health.is_live());
    assert!(receiver.try_recv().is_err());
    let waits = std::thread::spawn(move || receiver.recv(None));
    while sender.activity().busy_since().is_some() {
        std::thread::yield_now();
    }
    clock.pass(10 * PERIOD);
    assert!(health.is_live(), "a thread that waits for messages does not hang");
    drop(sender);
    assert!(waits.join().expect("it ends").is_err());
}
