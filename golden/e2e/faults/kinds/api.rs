//! Faults of the API server and of the way to it.

use std::time::Duration;

use golden::apiserver::{End, Pace};

use super::{Fault, PLAIN, When, last};
use crate::rig::{Rig, node};

fn under_pace(rig: &mut Rig, pace: Pace) {
    rig.api.set_pace(pace);
    rig.change();
    last(4);
    rig.api.set_pace(Pace::Normal);
}

fn answered_with(rig: &mut Rig, code: u16) {
    rig.api.fail_next(6, code);
    rig.api.end_watches(End::Torn);
    rig.change();
    last(2);
    rig.api.fail_no_more();
}

/// How long the API server is away in the row that takes that long; `DOWN=seconds` for another time.
const HOUR: u64 = 3600;

/// Counts attempts to connect to a port of the node while the API server is away for an hour.
fn down_for_an_hour(rig: &mut Rig) {
    let port = rig.api.address().port();
    let nft = |rig: &Rig, line: String| rig.cluster.on_node(&format!("nft {line}"));
    nft(rig, "add table inet attempts".into());
    nft(rig, "add chain inet attempts output { type filter hook output priority -300 ; }".into());
    rig.api.down();
    rig.change();
    nft(rig, format!("add rule inet attempts output tcp dport {port} tcp flags & (syn|ack) == syn counter"));
    last(std::env::var("DOWN").ok().and_then(|text| text.parse().ok()).unwrap_or(HOUR));
    let listed = nft(rig, "list table inet attempts".into());
    let attempts = listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a counter");
    rig.notes.push(format!("{attempts} attempts to connect"));
    rig.api.up();
}

pub fn faults() -> Vec<Fault> {
    vec![
        Fault {
            name: "api-down-hour",
            injected: "API server refuses connections for an hour, open ones are cut; a change meanwhile",
            when: When::ByName,
            within: Duration::from_secs(90),
            pause: Duration::from_secs(1),
            inject: down_for_an_hour,
            ..PLAIN
        },
        Fault {
            name: "api-down",
            injected: "API server refuses connections for 4 s, open ones are cut; a change meanwhile",
            inject: |rig| {
                rig.api.down();
                rig.change();
                last(4);
                rig.api.up();
            },
            ..PLAIN
        },
        Fault {
            name: "api-410",
            injected: "watches end and their history is gone: 410 Expired",
            inject: |rig| {
                rig.api.expire_history();
                rig.api.end_watches(End::Clean);
            },
            ..PLAIN
        },
        Fault {
            name: "api-429",
            injected: "watches break off, then 429 with Retry-After: 1 to 6 requests",
            inject: |rig| answered_with(rig, 429),
            ..PLAIN
        },
        Fault {
            name: "api-500",
            injected: "watches break off, then 500 to 6 requests",
            when: When::WithAll,
            inject: |rig| answered_with(rig, 500),
            ..PLAIN
        },
        Fault {
            name: "api-503",
            injected: "watches break off, then 503 to 6 requests",
            when: When::WithAll,
            inject: |rig| answered_with(rig, 503),
            ..PLAIN
        },
        Fault {
            name: "api-403",
            injected: "watches break off, then 403 to 6 requests (RBAC changed)",
            when: When::WithAll,
            inject: |rig| answered_with(rig, 403),
            ..PLAIN
        },
        Fault {
            name: "api-reset",
            injected: "all watches end with a TCP reset",
            when: When::WithAll,
            inject: |rig| rig.api.end_watches(End::Reset),
            ..PLAIN
        },
        Fault {
            name: "api-half-body",
            injected: "bodies stop after half of them for 4 s",
            when: When::WithAll,
            inject: |rig| under_pace(rig, Pace::HalfBody),
            ..PLAIN
        },
        Fault {
            name: "api-silent",
            injected: "API server accepts and says nothing for 4 s",
            when: When::WithAll,
            inject: |rig| under_pace(rig, Pace::Silent),
            ..PLAIN
        },
        Fault {
            name: "api-slow",
            injected: "bodies trickle, 100 bytes each 20 ms, for 4 s",
            when: When::WithAll,
            inject: |rig| {
                under_pace(rig, Pace::Slow { bytes: 100, delay: Duration::from_millis(20) });
            },
            ..PLAIN
        },
        Fault {
            name: "api-garbage",
            injected: "a watch of Services and one of EndpointSlices send bytes that are no event",
            when: When::WithAll,
            inject: |rig| {
                rig.api.send_line("Service", b"{\"type\":\xff\x00garbage");
                rig.api.send_line("EndpointSlice", b"<html>502 Bad Gateway</html>");
            },
            ..PLAIN
        },
        Fault {
            name: "api-bad-object",
            injected: "an EndpointSlice with ports of a wrong type",
            when: When::WithAll,
            inject: |rig| {
                let mut bad = golden::sample::slice("bad-1", "bad", &[]);
                bad["ports"] = "none".into();
                rig.api.apply(bad);
            },
            ..PLAIN
        },
        Fault {
            name: "node-deleted",
            injected: "the Node object is deleted for 3 s",
            inject: |rig| {
                rig.api.delete("Node", "", "node-a");
                rig.change();
                last(3);
                rig.api.apply(node());
            },
            ..PLAIN
        },
        Fault {
            name: "api-401",
            injected: "watches break off, then 401 to 6 requests (a token ended)",
            when: When::WithAll,
            inject: |rig| answered_with(rig, 401),
            ..PLAIN
        },
        Fault {
            name: "api-watch-ends",
            injected: "all watches end properly, as after their timeout",
            when: When::WithAll,
            inject: |rig| rig.api.end_watches(End::Clean),
            ..PLAIN
        },
        Fault {
            name: "api-unreachable",
            injected: "the link to the API server is down for 4 s; no connection is reset, a change meanwhile",
            when: When::WithAll,
            inject: |rig| {
                let _ = rig.cluster.on_node("ip link set lo down");
                rig.change();
                last(4);
                let _ = rig.cluster.on_node("ip link set lo up");
            },
            ..PLAIN
        },
        Fault {
            name: "node-renamed",
            injected: "the Node object is replaced by one of another name for 3 s",
            when: When::WithAll,
            inject: |rig| {
                let mut other = node();
                other["metadata"]["name"] = "node-z".into();
                rig.api.apply(other);
                rig.api.delete("Node", "", "node-a");
                last(3);
                rig.api.apply(node());
                rig.api.delete("Node", "", "node-z");
            },
            ..PLAIN
        },
    ]
}
