//! The servers of the process: health, metrics, health checks of Services.
//!
//! In: where to listen, what to tell. Out: servers at work, until they are stopped. Must not know: how the proxy works.
//! Each kind has its own clients, so that a crowd at one door does not close another.

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

/// How many clients each server may have. A connection costs up to some 20 KiB and a descriptor.
const MAX_CLIENTS: usize = 200;
/// Servers whose clients have a limit of their own: health, metrics, health checks of Services.
const LIMITED_SERVERS: usize = 3;
/// Descriptors for everything else: pipes to tools, netlink, the API server, files, timers.
const OTHER_DESCRIPTORS: usize = 128;

/// How the process shares its descriptors, so that no kind of them can take those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DescriptorBudget {
    clients_per_server: usize,
    health_check_sockets: usize,
}

impl DescriptorBudget {
    /// Shares a limit; whatever it is, each kind gets a fifth at least.
    fn share(limit: usize) -> Self {
        let clients_per_server = MAX_CLIENTS.min(limit / 5);
        let reserved = LIMITED_SERVERS * clients_per_server + OTHER_DESCRIPTORS.min(limit / 5);
        Self { clients_per_server, health_check_sockets: limit - reserved }
    }
}

/// Where and what to serve.
pub struct ServersConfig {
    /// Where health is served, if it is.
    pub health: Option<SocketAddr>,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// Whether a port that cannot be had is the end of it all.
    pub hard_fail: bool,
    /// What is told besides metrics.
    pub pages: Pages,
    /// Tells this node's addresses.
    pub addresses: ListAddresses,
    /// Where to tell what goes wrong.
    pub events: EventSender,
}

/// A port that had to be had and could not.
#[derive(Debug)]
pub struct PortFailure {
    /// How an event names it.
    pub reason: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// Servers at work.
pub struct Servers {
    pages: JoinSet<Result<Infallible, PortFailure>>,
    clients: Vec<Arc<ConnectionLimiter>>,
    checks: JoinHandle<()>,
}

impl Servers {
    /// Starts all; the second value takes what syncs report of health checks.
    pub fn start(plan: ServersConfig, health: &Arc<Health>, metrics: &Arc<Metrics>) -> (Self, HealthCheckSender) {
        let (mut pages, mut clients) = (JoinSet::new(), Vec::new());
        let descriptors = DescriptorBudget::share(descriptors::limit());
        let mut add = |name: &'static str, reason, address: Option<SocketAddr>, handler: Handler| {
            let Some(address) = address else { return };
            let own = ConnectionLimiter::new(descriptors.clients_per_server, ServerTimeouts::default());
            clients.push(own.clone());
            pages.spawn(async move {
                let served = serve(name, address, handler, own, plan.hard_fail).await;
                served.map_err(|problem| PortFailure { reason, problem })
            });
        };
        let (health_fails, metrics_fails) = ("FailedToStartProxierHealthcheck", "FailedToStartMetricServer");
        add("health", health_fails, plan.health, health_pages(health.clone(), metrics.clone()));
        add("metrics", metrics_fails, plan.metrics, metrics_pages(plan.pages, metrics.clone()));
        let (sender, reports) = mpsc::unbounded_channel();
        // Where health is not asked for, nothing says that the proxy is not well (behaviour.yaml I3).
        let health = plan.health.map(|_| health.clone());
        let own = ConnectionLimiter::new(descriptors.clients_per_server, ServerTimeouts::default());
        let checks = HealthCheckServers::new(
            health,
            plan.addresses,
            (own, descriptors.health_check_sockets),
            plan.events,
            metrics.unserved_health_checks.clone(),
        );
        let checks = tokio::spawn(checks.run(reports));
        (Self { pages, clients, checks }, sender)
    }

    /// Waits for a port that had to be had and could not.
    pub async fn failed(&mut self) -> PortFailure {
        match self.pages.join_next().await {
            Some(Ok(Err(failure))) => failure,
            Some(Ok(Ok(never))) => match never {},
            Some(Err(error)) => {
                PortFailure { reason: "ServerEnded", problem: format!("an HTTP server ended: {error}") }
            }
            // None was asked for.
            None => match std::future::pending::<Infallible>().await {},
        }
    }

    /// Stops all. Nobody may be left who reports. Answers under way are finished.
    pub async fn stop(mut self) {
        self.pages.shutdown().await;
        let _ = self.checks.await;
        for clients in self.clients {
            clients.drain().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_any_limit_are_shared_without_using_more_than_there_are() {
        for limit in [0, 5, 64, 256, 1024, 20_000, usize::MAX] {
            let DescriptorBudget { clients_per_server, health_check_sockets } = DescriptorBudget::share(limit);
            assert!(LIMITED_SERVERS * clients_per_server + health_check_sockets <= limit, "{limit}");
            assert!(clients_per_server >= MAX_CLIENTS.min(limit / 5) && health_check_sockets >= limit / 5, "{limit}");
        }
        let usual = DescriptorBudget { clients_per_server: 200, health_check_sockets: 296 };
        assert_eq!(DescriptorBudget::share(1024), usual);
    }
}
