//! Cheap drift detection in the real kernel: iptables mode in both flavours, nftables mode.
//!
//! Firewall reloads are detected; changes of other programs' rules are not drift. Needs root.

use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::Flavour;
use netfilter::testing::FakeHost;
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::nftables::Nftables;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};

use crate::common::real::{FLAVOURS, Real};
use crate::nftables_engine::kernel;

struct World {
    mode: Box<dyn Backend>,
    tracker: Tracker,
    now: Instant,
}

impl World {
    fn new(mode: impl Backend + 'static) -> Self {
        let mut tracker = Tracker::default();
        let mut translator = Translator::new(objects::NODE, false);
        for n in 0..20 {
            let name = format!("web{n}");
            let endpoints = [objects::address(2 * n + 1), objects::address(2 * n + 2)];
            let service = objects::service("default", &name, objects::address(1000 + n));
            let slice = objects::slice("default", &name, &format!("{name}-1"), &endpoints);
            for (kind, object) in [(Kind::Service, service), (Kind::EndpointSlice, slice)] {
                for (family, change) in
                    translator.applied(objects::decoded(kind, object)).expect("a valid object").changes
                {
                    if family == IpFamily::V4 {
                        tracker.apply(change);
                    }
                }
            }
        }
        let mut world = Self { mode: Box::new(mode), tracker, now: Instant::now() };
        world.sync();
        world
    }

    fn sync(&mut self) {
        let snapshot = self.tracker.snapshot(objects::address(1));
        self.mode.sync(&snapshot, &Scope::Full, self.now).expect("a sync");
    }

    fn look(&mut self) -> Option<String> {
        self.mode.check_drift_quickly(self.now).expect("a look")
    }
}

fn iptables(real: &Real) -> World {
    World::new(Iptables::new(IpFamily::V4, objects::config(), real.tools(), Box::new(FakeHost::default())))
}

fn run(real: &Real, arguments: &str) {
    let output = real.program("").args(arguments.split(' ')).output().expect("it can be run");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn iptables_reloads_are_seen_and_only_once() {
    for flavour in FLAVOURS {
        let real = Real::new(flavour);
        let mut world = iptables(&real);
        assert_eq!(world.look(), None, "{:?}", flavour.0);
        let mut damages = vec!["-t nat -F", "-t filter -F", "-t nat -F KUBE-SERVICES"];
        if flavour.0 == Flavour::Nft {
            damages.extend(["-t nat -F PREROUTING", "-t filter -D FORWARD 1", "-t mangle -X KUBE-PROXY-CANARY"]);
        }
        for damage in damages {
            run(&real, damage);
            assert!(world.look().is_some(), "{:?}: {damage}", flavour.0);
            assert_eq!(world.look(), None, "{:?}: {damage}: reported already", flavour.0);
            world.sync();
            assert_eq!(world.look(), None, "{:?}: {damage}: mended", flavour.0);
        }
    }
}

#[test]
fn a_foreign_restore_of_a_whole_table_is_seen() {
    for flavour in FLAVOURS {
        let real = Real::new(flavour);
        let mut world = iptables(&real);
        let restore = real.program("-restore");
        let script = format!("printf '*nat\\nCOMMIT\\n' | {}", restore.get_program().to_string_lossy());
        real.enter();
        let status = std::process::Command::new("sh").args(["-c", &script]).status().expect("a shell");
        assert!(status.success());
        assert!(world.look().is_some(), "{:?}", flavour.0);
    }
}

#[test]
fn rules_of_others_are_no_damage_and_one_of_ours_that_goes_is_found_when_there_is_time() {
    for flavour in FLAVOURS {
        let real = Real::new(flavour);
        let mut world = iptables(&real);
        run(&real, "-t nat -N OTHERS");
        run(&real, "-t nat -I PREROUTING -j OTHERS");
        world.now += Duration::from_secs(60);
        assert_eq!(world.look(), None, "{:?}: all rules are looked at, and are as they were", flavour.0);
        let chain = "KUBE-MARK-MASQ";
        run(&real, &format!("-t nat -F {chain}"));
        if flavour.0 == Flavour::Nft {
            assert_eq!(world.look(), None, "others write now");
            assert_eq!(
                world.mode.check_drift(world.now).expect("a check"),
                None,
                "nor is it time to read by the clock"
            );
        }
        world.now += Duration::from_hours(1);
        assert!(world.look().is_some_and(|damage| damage.contains(chain)), "{:?}", flavour.0);
    }
}

#[test]
fn nftables_reloads_are_seen_and_only_once() {
    let real = kernel::Real::new();
    let mut world =
        World::new(Nftables::new(IpFamily::V4, objects::config(), real.engine(), Box::new(FakeHost::default())));
    assert_eq!(world.look(), None);
    for damage in [
        "flush ruleset",
        "delete table ip kube-proxy",
        "flush table ip kube-proxy",
        "flush chain ip kube-proxy nat-prerouting",
    ] {
        real.nft(damage);
        assert!(world.look().is_some(), "{damage}");
        assert_eq!(world.look(), None, "{damage}: reported already");
        world.sync();
        assert_eq!(world.look(), None, "{damage}: mended");
    }
}

#[test]
fn nf_tables_of_others_are_no_damage_and_an_element_that_goes_is_found_when_there_is_time() {
    let real = kernel::Real::new();
    let mut world =
        World::new(Nftables::new(IpFamily::V4, objects::config(), real.engine(), Box::new(FakeHost::default())));
    real.nft("add table ip others");
    assert_eq!(world.look(), None, "the table is looked at, and is as it was");
    real.nft("flush map ip kube-proxy service-ips");
    world.now += Duration::from_hours(1);
    assert!(world.look().is_some_and(|damage| damage.contains("service-ips")));
}
