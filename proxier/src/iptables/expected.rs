//! The expected rules, for comparison by inspection commands.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netfilter::IpFamily;

use super::base;
use super::plan::{self, OwnedRestore, PlanInput};
use super::programmed::ProgrammedChains;
use super::settings::{HostFeatures, IptablesSettings};
use crate::model::{Config, ServicePortName, Snapshot};
use crate::xtables::ObservedTables;

/// Host facts that rules depend on.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// The node's addresses, in the kernel's order.
    pub addresses: Vec<IpAddr>,
    /// Whether MASQUERADE supports `--random-fully`.
    pub random_fully: bool,
    /// Whether rules use the nfacct counters.
    pub nfacct: bool,
    /// Whether `nf_conntrack_tcp_be_liberal` is set.
    pub tcp_be_liberal: bool,
}

/// The approximate number of chains in an [`ExpectedPart`], which limits memory.
const PART_CHAINS: usize = 1000;

/// Some of the expected chains, each complete.
#[derive(Debug)]
pub struct ExpectedPart<'a, 'b>(OwnedRestore<'a, 'b>);

impl ExpectedPart<'_, '_> {
    /// The lines of `iptables-restore` input, each with the Service port that owns it, if any.
    pub fn lines(&self) -> impl Iterator<Item = (&str, Option<&ServicePortName>)> {
        let OwnedRestore { restore, owners } = &self.0;
        let owner = |line: usize| owners.get(restore.owner(line)? as usize).copied();
        let lines = restore.parts().flat_map(str::lines);
        lines.enumerate().map(move |(at, line)| (line, owner(at + 1)))
    }
}

/// Passes all expected rules to `take` in parts: together they may take 100 MB.
pub fn expected_parts(
    family: IpFamily,
    config: &Config,
    snapshot: &Snapshot<'_>,
    host: &HostFacts,
    mut take: impl FnMut(&ExpectedPart<'_, '_>),
) {
    render(family, config, snapshot, host, PART_CHAINS, |transaction| take(&ExpectedPart(transaction)));
}

/// Passes the `iptables-restore` input of all expected rules to `piece`, in whole lines.
pub fn expected(
    family: IpFamily,
    config: &Config,
    snapshot: &Snapshot<'_>,
    host: &HostFacts,
    mut piece: impl FnMut(&str),
) {
    render(family, config, snapshot, host, usize::MAX, |transaction| transaction.restore.parts().for_each(&mut piece));
}

fn render(
    family: IpFamily,
    config: &Config,
    snapshot: &Snapshot<'_>,
    host: &HostFacts,
    batch: usize,
    mut take: impl FnMut(OwnedRestore<'_, '_>),
) {
    let HostFacts { random_fully, nfacct, tcp_be_liberal, .. } = *host;
    let features = HostFeatures { random_fully, nfacct, tcp_be_liberal };
    let settings = IptablesSettings::of(family, config, snapshot, features, || host.addresses.clone());
    let mut observed = ObservedTables::default();
    observed.missing_jumps = base::jumps();
    let input = PlanInput {
        snapshot,
        settings: &settings,
        state: &ProgrammedChains::default(),
        observed: Some(&observed),
        changed: None,
        rejected: &HashMap::new(),
        referenced: &HashMap::new(),
        batch,
        edits_rules: false,
        deletion_interval: Duration::ZERO,
        now: Instant::now(),
    };
    let planned = plan::plan(input, |transaction| {
        take(transaction);
        Ok::<(), Infallible>(())
    });
    match planned {
        Ok(_) => {}
        Err(never) => match never {},
    }
}
