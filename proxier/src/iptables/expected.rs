//! What the rules should be, for comparing.
//!
//! In: a snapshot, the configuration, what the host can do. Out: the text that a first sync would write into empty
//! tables. Must not know: what the kernel holds.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::base;
use super::plan::{self, Input};
use super::settings::{Features, Settings};
use super::state::State;
use crate::family::IpFamily;
use crate::model::{Config, Snapshot};
use crate::xtables::Tables;

/// What rules depend on besides the objects and the configuration.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// The node's addresses, in the kernel's order.
    pub addresses: Vec<IpAddr>,
    /// MASQUERADE knows `--random-fully`.
    pub random_fully: bool,
    /// Rules name the nfacct counters.
    pub nfacct: bool,
    /// `nf_conntrack_tcp_be_liberal` is on.
    pub tcp_be_liberal: bool,
}

/// Hands over the text of all rules, as `iptables-restore` would read it, in pieces of whole lines.
pub fn expected(
    family: IpFamily,
    config: &Config,
    snapshot: &Snapshot<'_>,
    host: &HostFacts,
    mut piece: impl FnMut(&str),
) {
    let HostFacts { random_fully, nfacct, tcp_be_liberal, .. } = *host;
    let features = Features { random_fully, nfacct, tcp_be_liberal };
    let settings = Settings::of(family, config, snapshot, features, || host.addresses.clone());
    let mut observed = Tables::default();
    observed.missing_jumps = base::jumps();
    let input = Input {
        snapshot,
        settings: &settings,
        state: &State::default(),
        observed: Some(&observed),
        changed: None,
        rejected: &HashMap::new(),
        batch: usize::MAX,
        deletion_interval: Duration::ZERO,
        now: Instant::now(),
    };
    let planned = plan::plan(input, |transaction| {
        transaction.restore.parts().for_each(&mut piece);
        Ok::<(), Infallible>(())
    });
    match planned {
        Ok(_) => {}
        Err(never) => match never {},
    }
}
