//! The sysctls and counters of iptables mode.

use std::io;

use tracing::{info, warn};

use super::Iptables;
use super::settings::{INVALID_DROPPED_COUNTER, IptablesSettings, LOCALHOST_NODE_PORTS_COUNTER};
use crate::backend::SyncError;

const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const TCP_BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

impl Iptables {
    /// Reads `nf_conntrack_tcp_be_liberal` once, as kube-proxy does.
    ///
    /// A failed read is retried; until then packets in state INVALID are dropped.
    pub(super) fn read_liberal(&mut self) {
        if self.knows_liberal {
            return;
        }
        let read = self.host.sysctl(TCP_BE_LIBERAL);
        self.knows_liberal = match &read {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(_) => true,
        };
        self.features.tcp_be_liberal = read.is_ok_and(|value| value != 0);
        if self.features.tcp_be_liberal {
            info!("not dropping packets in conntrack state INVALID: {TCP_BE_LIBERAL} is set");
        }
    }

    /// Sets `route_localnet` and creates the nfacct counters that rules use.
    pub(super) fn ensure_host_state(&mut self, settings: &IptablesSettings) {
        // kube-proxy exits here; serving all other traffic is more useful.
        let problem = if settings.localhost_node_ports { self.route_localnet().err() } else { None };
        if let Some(problem) = &problem
            && !self.no_route_localnet
        {
            warn!("{problem}");
        }
        self.no_route_localnet = problem.is_some();
        let counters = [INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER];
        let made: Result<(), _> = counters.iter().try_for_each(|name| self.host.ensure_counter(name));
        if let Err(error) = &made
            && self.state.settings.is_none()
        {
            info!("cannot use nfacct counters in rules: {error}");
        }
        // Counters that existed once are assumed to exist: the tool refuses rules with missing ones.
        self.features.nfacct = (made.is_ok() || self.features.nfacct) && !self.nfacct_refused;
    }

    pub(super) fn route_localnet(&mut self) -> Result<(), SyncError> {
        self.host.set_sysctl(ROUTE_LOCALNET, 1).map_err(|error| {
            SyncError(format!(
                "cannot set {ROUTE_LOCALNET} for node ports on loopback addresses: {error}; \
                 disable these with --iptables-localhost-nodeports=false"
            ))
        })
    }
}
