//! The HTTP servers of the process: health, metrics, and health checks of Services.
//!
//! Each kind has its own connection limit, so that many clients of one server cannot exhaust another.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use netfilter::kernel::descriptors;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::events::EventSender;
use crate::health::Health;
use crate::health_checks::{HealthCheckSender, HealthCheckServers, ListAddresses};
use crate::http::serve::{ConnectionLimiter, ServerTimeouts, serve};
use crate::http::{Handler, Pages, health_pages, metrics_pages};
use crate::metrics::Metrics;

/// Connections per server; each costs up to 20 KiB and a file descriptor.
const MAX_CLIENTS: usize = 200;
/// Servers with a connection limit of their own: health, metrics, health checks of Services.
const LIMITED_SERVERS: usize = 3;
/// File descriptors reserved for everything else: pipes to tools, netlink, the API server, files, timers.
const OTHER_DESCRIPTORS: usize = 128;

/// How the process divides its file descriptors, so that no use can exhaust those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DescriptorBudget {
    clients_per_server: usize,
    health_check_sockets: usize,
    /// Of the localhost proxy, if there is one.
    localhost: usize,
}

impl DescriptorBudget {
    /// Divides a limit; each use gets at least a fifth. A localhost proxy gets nine tenths of the health checks' part.
    fn share(limit: usize, localhost_proxy: bool) -> Self {
        let clients_per_server = MAX_CLIENTS.min(limit / 5);
        let rest = limit - LIMITED_SERVERS * clients_per_server - OTHER_DESCRIPTORS.min(limit / 5);
        let localhost = if localhost_proxy { rest / 10 * 9 } else { 0 };
        Self { clients_per_server, health_check_sockets: rest - localhost, localhost }
    }
}

/// The file descriptors of the localhost proxy, where there is one.
pub fn localhost_descriptors() -> usize {
    DescriptorBudget::share(descriptors::limit(), true).localhost
}

/// What to serve, and where.
pub struct ServersConfig {
    /// Address of the health server, unless disabled.
    pub health: Option<SocketAddr>,
    /// Address of the metrics server, unless disabled.
    pub metrics: Option<SocketAddr>,
    /// Whether the process exits if it cannot listen (`bindAddressHardFail`).
    pub hard_fail: bool,
    /// The pages of the metrics server besides metrics.
    pub pages: Pages,
    /// Lists this node's addresses.
    pub addresses: ListAddresses,
    /// Receives failures as events.
    pub events: EventSender,
    /// Whether a localhost proxy needs descriptors too.
    pub localhost_proxy: bool,
}

/// A required port on which the process cannot listen.
#[derive(Debug)]
pub struct PortFailure {
    /// The reason in the event.
    pub reason: &'static str,
    /// The error.
    pub problem: String,
}

/// The running servers.
pub struct Servers {
    pages: JoinSet<Result<Infallible, PortFailure>>,
    limiters: Vec<Arc<ConnectionLimiter>>,
    checks: JoinHandle<()>,
}

impl Servers {
    /// Starts all servers. The second value receives the health checks that syncs report.
    pub fn start(plan: ServersConfig, health: &Arc<Health>, metrics: &Arc<Metrics>) -> (Self, HealthCheckSender) {
        let (mut pages, mut limiters) = (JoinSet::new(), Vec::new());
        let descriptors = DescriptorBudget::share(descriptors::limit(), plan.localhost_proxy);
        let mut add = |name: &'static str, reason, address: Option<SocketAddr>, handler: Handler| {
            let Some(address) = address else { return };
            let limiter = ConnectionLimiter::new(descriptors.clients_per_server, ServerTimeouts::default());
            limiters.push(limiter.clone());
            pages.spawn(async move {
                let served = serve(name, address, handler, limiter, plan.hard_fail).await;
                served.map_err(|problem| PortFailure { reason, problem })
            });
        };
        let (health_fails, metrics_fails) = ("FailedToStartProxierHealthcheck", "FailedToStartMetricServer");
        add("health", health_fails, plan.health, health_pages(health.clone(), metrics.clone()));
        add("metrics", metrics_fails, plan.metrics, metrics_pages(plan.pages, metrics.clone()));
        let (sender, reports) = mpsc::unbounded_channel();
        // With the health server disabled, Services' health checks report the proxy as healthy (behaviour.yaml I3).
        let health = plan.health.map(|_| health.clone());
        let limiter = ConnectionLimiter::new(descriptors.clients_per_server, ServerTimeouts::default());
        let checks = HealthCheckServers::new(
            health,
            plan.addresses,
            (limiter, descriptors.health_check_sockets),
            plan.events,
            metrics.unserved_health_checks.clone(),
        );
        let checks = tokio::spawn(checks.run(reports));
        (Self { pages, limiters, checks }, sender)
    }

    /// Waits for a required port to fail.
    pub async fn failed(&mut self) -> PortFailure {
        match self.pages.join_next().await {
            Some(Ok(Err(failure))) => failure,
            Some(Ok(Ok(never))) => match never {},
            Some(Err(error)) => {
                PortFailure { reason: "ServerEnded", problem: format!("an HTTP server ended: {error}") }
            }
            // Both servers are disabled.
            None => match std::future::pending::<Infallible>().await {},
        }
    }

    /// Stops all servers after every report sender was dropped. Responses under way are finished.
    pub async fn stop(mut self) {
        self.pages.shutdown().await;
        let _ = self.checks.await;
        for limiter in self.limiters {
            limiter.drain().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::localhost_proxy::LocalhostLimits;

    #[test]
    fn descriptors_of_any_limit_are_shared_without_using_more_than_there_are() {
        for limit in [0, 5, 64, 256, 1024, 20_000, usize::MAX] {
            let DescriptorBudget { clients_per_server, health_check_sockets, localhost } =
                DescriptorBudget::share(limit, false);
            assert!(LIMITED_SERVERS * clients_per_server + health_check_sockets <= limit, "{limit}");
            assert!(clients_per_server >= MAX_CLIENTS.min(limit / 5) && health_check_sockets >= limit / 5, "{limit}");
            let with_proxy = DescriptorBudget::share(limit, true);
            assert_eq!(with_proxy.health_check_sockets + with_proxy.localhost, health_check_sockets, "{limit}");
            assert_eq!((localhost, with_proxy.clients_per_server), (0, clients_per_server), "{limit}");
            let LocalhostLimits { sockets, listeners, pipes } = LocalhostLimits::share(with_proxy.localhost);
            assert!(sockets + 2 * pipes <= with_proxy.localhost && listeners <= sockets, "{limit}");
        }
        let usual = DescriptorBudget { clients_per_server: 200, health_check_sockets: 296, localhost: 0 };
        assert_eq!(DescriptorBudget::share(1024, false), usual);
        let many = LocalhostLimits::share(DescriptorBudget::share(1_048_576, true).localhost);
        assert_eq!(many, LocalhostLimits { sockets: 942_544, listeners: 706_908, pipes: 256 });
    }
}
