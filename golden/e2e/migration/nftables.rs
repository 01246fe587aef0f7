//! The same in nftables mode, where both write one table: the real one's transactions are made from recordings.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use golden::case::Mode;
use golden::flavour::Flavour;
use golden::proxy::Proxy;
use golden::upstream::{ListedTable, Upstream, before_1_33};

use super::{BINARY, World};

impl World {
    /// Runs nft on the node.
    fn nft(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.cluster.node().command("nft");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nft can be run");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("nft reads");
        let output = child.wait_with_output().expect("nft ends");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The table of a family.
    fn listed(&self, family: &str) -> Vec<ListedTable> {
        ListedTable::all(&self.nft(&["list", "table", family, "kube-proxy"], "").expect("nft lists"))
    }

    /// A process of the real one starts, syncs, syncs again after a second, and ends.
    fn upstream_syncs(&self, watch: &dyn Fn(), shape: fn(&ListedTable) -> ListedTable) {
        let mut processes: BTreeMap<String, Upstream> = BTreeMap::new();
        for _ in 0..2 {
            for table in ListedTable::all(&self.case.recorded_tables(0)).iter().map(shape) {
                let process = processes.entry(table.family.clone()).or_default();
                process.sync(&table, &|arguments, input| self.nft(arguments, input)).expect("it is accepted");
            }
            watch();
        }
    }
}

/// From the real one to ours, ours restarted, back, and there again.
fn there_and_back(shape: fn(&ListedTable) -> ListedTable) {
    let world = World::untouched(Flavour::Nft);
    world.configure_mode(Mode::Nftables);
    world.upstream_syncs(&|| (), shape);
    let (cluster, environment) = (&world.cluster, world.cluster.environment());
    world.under_traffic(|watch| {
        watch.some_rounds();
        let mut tables = Vec::new();
        for _ in 0..2 {
            for _ in 0..2 {
                let proxy = Proxy::start(cluster.node(), Path::new(BINARY), cluster.directory(), &environment);
                world.until_synced();
                watch.some_rounds();
                proxy.stop().expect("an orderly end");
                tables.push(["ip", "ip6"].map(|family| world.listed(family)));
            }
            world.upstream_syncs(&|| watch.some_rounds(), shape);
        }
        assert!(tables.iter().all(|table| *table == tables[0]), "{tables:#?}");
    });
}

#[test]
fn there_and_back_in_nftables_mode() {
    there_and_back(ListedTable::clone);
}

#[test]
fn there_and_back_between_nftables_mode_and_that_of_1_31() {
    there_and_back(before_1_33);
}
