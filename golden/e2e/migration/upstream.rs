//! Migration tests with the real kube-proxy, and between modes.
//!
//! They are ignored unless requested: `REAL_KUBE_PROXY=PATH cargo test --test e2e migration::upstream:: -- --ignored`.
//! For each change they report failed connections and upstream's errors.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use golden::apiserver::ApiServer;
use golden::case::Mode;
use golden::flavour::Flavour;
use golden::proxy::{Proxy, config};
use serde_json::json;

use super::{BINARY, World};

/// Whose program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Make {
    Ours,
    Real,
}

/// One program after the other, in these modes, under traffic. New connections fail at most where the real one changes the
/// mode; none that is open does.
fn moves(flavour: Flavour, moves: &[(Make, Mode)]) {
    let real = PathBuf::from(std::env::var_os("REAL_KUBE_PROXY").expect("REAL_KUBE_PROXY is the real kube-proxy"));
    let world = World::untouched(flavour);
    let cluster = &world.cluster;
    let listener = cluster.node().enter(|| TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let api = ApiServer::start_on(listener);
    api.load_yaml(&world.case.stored[0]);
    let start = |make: Make, mode: Mode| {
        let mut fields = config(mode, &world.case.config);
        fields["clientConnection"] = json!({
            "kubeconfig": api.kubeconfig(cluster.directory()),
            "contentType": "application/json",
        });
        let file = cluster.directory().join("config.yaml");
        std::fs::write(&file, fields.to_string()).expect("a configuration");
        let binary = if make == Make::Ours { Path::new(BINARY) } else { &real };
        let arguments = ["--config", &file.to_string_lossy(), "-v=2"];
        let proxy = Proxy::start_with(cluster.node(), binary, &arguments, cluster.directory(), &cluster.environment());
        world.until_synced();
        proxy
    };
    let mut running = Some(start(moves[0].0, moves[0].1));
    let mut starts = Vec::new();
    let failures = world.failures_under_traffic(|watch| {
        watch.some_rounds();
        for ((_, mode_before), (make, mode)) in moves.iter().zip(&moves[1..]) {
            running.take().expect("the one before").stop().expect("an orderly end");
            starts.push(Instant::now());
            let proxy = running.insert(start(*make, *mode));
            watch.some_rounds();
            let log = proxy.log_tail(10_000);
            let failed: Vec<&str> = log.lines().filter(|line| is_failure(line, mode != mode_before)).collect();
            assert!(failed.is_empty(), "{make:?} {mode}: {failed:#?}");
        }
        starts.push(Instant::now());
    });
    for (nth, span) in starts.windows(2).enumerate() {
        let [(_, before), (make, mode)] = [moves[nth], moves[nth + 1]];
        let during: Vec<&(Instant, String)> =
            failures.iter().filter(|(at, _)| (span[0]..span[1]).contains(at)).collect();
        let times = || during.iter().map(|(at, _)| *at);
        let lasted = times().max().zip(times().min()).map_or(Duration::ZERO, |(last, first)| last - first);
        println!("{before} to {make:?} {mode}: {} new connections failed within {lasted:?}", during.len());
        // The real one deletes what its other modes left before it writes its own rules.
        let is_expected = make == Make::Real && mode != before;
        assert!(is_expected || during.is_empty(), "{before} to {make:?} {mode}: {during:#?}");
    }
}

/// An error, but for advice about the configuration, and that there is no table yet where the other mode had none.
fn is_failure(line: &str, is_new_mode: bool) -> bool {
    let advice = line.contains("configuration may be incomplete or incorrect");
    let no_table = is_new_mode && line.contains("Failed to list existing nftables objects");
    line.starts_with('E') && !advice && !no_table || line.contains("Sync failed") || line.contains("will retry")
}

#[test]
#[ignore = "needs the real kube-proxy in REAL_KUBE_PROXY"]
fn the_real_program_and_ours_take_turns_in_nftables_mode() {
    let turns = [Make::Real, Make::Ours, Make::Real, Make::Ours, Make::Ours, Make::Real];
    moves(Flavour::Nft, &turns.map(|make| (make, Mode::Nftables)));
}

#[test]
#[ignore = "needs the real kube-proxy in REAL_KUBE_PROXY"]
fn the_real_program_and_ours_take_turns_in_iptables_mode() {
    let turns = [Make::Real, Make::Ours, Make::Real, Make::Ours];
    moves(Flavour::Nft, &turns.map(|make| (make, Mode::Iptables)));
    moves(Flavour::Legacy, &turns.map(|make| (make, Mode::Iptables)));
}

#[test]
#[ignore = "needs the real kube-proxy in REAL_KUBE_PROXY"]
fn the_real_program_and_ours_take_turns_in_different_modes() {
    use Make::{Ours, Real};
    use Mode::{Iptables, Nftables};
    moves(Flavour::Nft, &[(Real, Iptables), (Ours, Nftables), (Real, Iptables), (Ours, Iptables), (Real, Nftables)]);
    moves(Flavour::Nft, &[(Real, Nftables), (Ours, Iptables), (Real, Nftables), (Ours, Nftables), (Real, Iptables)]);
}
