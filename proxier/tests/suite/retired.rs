//! Chains that a large cluster no longer needs: they wait, and then go without a look at everything else.

use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::testing::{FakeHost, FakeIptables};
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::Value;

/// Enough that kube-proxy calls the cluster large.
const ENDPOINTS: u32 = 1_001;

fn take(tracker: &mut Tracker, kind: Kind, object: Value) {
    let mut translator = Translator::new(objects::NODE, false);
    for (family, change) in translator.applied(objects::decoded(kind, object)).expect("a valid object").changes {
        if family == IpFamily::V4 {
            tracker.apply(change);
        }
    }
}

fn slice(endpoints: u32) -> Value {
    let endpoints: Vec<_> = (0..endpoints).map(objects::address).collect();
    objects::slice("default", "large", "large-1", &endpoints)
}

#[test]
fn unused_chains_are_deleted_in_one_transaction_when_their_time_has_come() {
    let (fake, mut tracker) = (FakeIptables::default(), Tracker::default());
    let mut iptables =
        Iptables::new(IpFamily::V4, objects::config(), Box::new(fake.clone()), Box::new(FakeHost::default()));
    let endpoint_chains = || fake.chains(Table::Nat).keys().filter(|chain| chain.starts_with("KUBE-SEP-")).count();
    let start = Instant::now();
    let sync = |tracker: &mut Tracker, iptables: &mut Iptables, full, at| {
        let scope = tracker.take_scope();
        let scope = if full { Scope::Full } else { scope };
        iptables.sync(&tracker.snapshot(objects::address(1)), &scope, at).expect("a sync");
    };

    take(&mut tracker, Kind::Service, objects::service("default", "large", objects::address(0x80_0000)));
    take(&mut tracker, Kind::EndpointSlice, slice(ENDPOINTS + 5));
    sync(&mut tracker, &mut iptables, true, start);
    take(&mut tracker, Kind::EndpointSlice, slice(ENDPOINTS));
    sync(&mut tracker, &mut iptables, false, start + Duration::from_secs(1));
    assert_eq!(endpoint_chains(), ENDPOINTS as usize + 5, "they wait");
    assert!(iptables.check_drift(start + Duration::from_secs(10)).expect("a check").is_none());
    assert_eq!(endpoint_chains(), ENDPOINTS as usize + 5, "and wait");

    let before = fake.restores();
    let damage = iptables.check_drift(start + Duration::from_secs(40)).expect("a check");
    assert_eq!((damage, fake.restores() - before), (None, 1), "nothing but the deletion is done");
    assert_eq!(endpoint_chains(), ENDPOINTS as usize);
    assert!(iptables.check_drift(start + Duration::from_secs(80)).expect("a check").is_none());
    assert_eq!(fake.restores() - before, 1, "and it is done once");
}
