//! Compares the flow tables with real packets in nftables mode, for the proxy's table and the recorded one.

use golden::case::{Case, Mode, cases, differences, folder};
use golden::flows::{self, FlowTable, PacketSampler};
use golden::probe::Node;
use golden::replay::Replay;

/// Checks the flow tables, shared among two nodes, with the rules that each case gets, if any; how many flows hold.
fn check(rules: impl Fn(&Case) -> Option<String> + Sync) -> usize {
    let names = flows::cases().expect("the flow tables");
    let cases: Vec<Case> = cases().into_iter().filter(|case| names.contains(&case.name)).collect();
    assert_eq!(cases.len(), names.len(), "a flow table without a case");
    let share = |first: usize| {
        let node = Node::new();
        let own = cases.iter().skip(first).step_by(2).filter(|case| case.has(Mode::Nftables));
        own.filter_map(|case| Some(holds(&node, case, &rules(case)?))).collect::<Vec<_>>()
    };
    let found = std::thread::scope(|scope| {
        let other = scope.spawn(|| share(1));
        let mut found = share(0);
        found.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        found
    });
    let wrong: Vec<&str> = found.iter().filter_map(|held| held.as_ref().err().map(String::as_str)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    found.into_iter().flatten().sum()
}

fn holds(node: &Node, case: &Case, rules: &str) -> Result<usize, String> {
    node.clear();
    node.feed("nft", &["-f", "-"], rules)?;
    let table = FlowTable::load(&case.name)?;
    let mut asker = PacketSampler::new(node);
    table.check("nftables", &mut |question| asker.answer(question)).map_err(|error| format!("{}: {error}", case.name))
}

#[test]
fn every_flow_table_holds_in_nftables_mode() {
    let held = check(|case| {
        let mut replay = Replay::new(case, Mode::Nftables);
        replay.step(&case.stored[0]);
        Some(replay.tables())
    });
    assert!(held > 1000, "only {held} flows");
}

#[test]
fn every_flow_table_holds_on_the_real_ones_tables() {
    let better = differences(&folder());
    let held =
        check(|case| (!better.contains_key(&format!("{}/nftables", case.name))).then(|| case.recorded_tables(0)));
    assert!(held > 1000, "only {held} flows");
}
