//! Live traffic: open connections and continuous new ones, TCP and UDP, through every kind of address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use golden::cluster::{Client, Cluster, Family, NODE, POD_9, Protocol, Session, VIP};

use super::rig::{NODE_PORT, cluster_ip};

/// The timeout after which a connection counts as lost: two SYN retransmissions.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Lost connections and attempts.
type Count = (usize, usize);

/// The lost traffic.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// New TCP connections.
    pub tcp: Count,
    /// New UDP flows.
    pub udp: Count,
    /// TCP connections opened before the fault.
    pub sessions: Count,
}

/// The clients and addresses of the traffic, in both families.
///
/// A pod and the node use the cluster IP, the host outside a node port and a load balancer's virtual IP.
pub fn ways(cluster: &Cluster) -> Vec<(Client<'_>, SocketAddr)> {
    let of = |family| {
        [
            (cluster.pod(POD_9), cluster_ip(family)),
            (cluster.host(), cluster_ip(family)),
            (cluster.outside(), NODE.at(family, NODE_PORT)),
            (cluster.outside(), VIP.at(family, golden::cluster::PORT)),
        ]
    };
    Family::BOTH.into_iter().flat_map(of).collect()
}

/// Traffic in progress.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    probes: Vec<JoinHandle<[Count; 2]>>,
    sessions: Vec<Session>,
}

impl Traffic {
    /// Opens connections and starts new ones, with a pause between two on the same path.
    pub fn start(cluster: &Arc<Cluster>, pause: Duration) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let sessions = ways(cluster).iter().map(|(client, to)| client.session(*to)).collect();
        let probe = |way: usize| {
            let (cluster, stop) = (cluster.clone(), stop.clone());
            std::thread::spawn(move || probe(&ways(&cluster)[way], pause, &stop))
        };
        let probes = (0..ways(cluster).len()).map(probe).collect();
        Self { stop, probes, sessions }
    }

    /// Stops the traffic and returns the losses.
    pub fn stop(self) -> Lost {
        self.stop.store(true, Ordering::Relaxed);
        let mut lost = Lost { tcp: (0, 0), udp: (0, 0), sessions: (0, self.sessions.len()) };
        for probe in self.probes {
            let [tcp, udp] = probe.join().expect("a probe does not panic");
            lost.tcp = (lost.tcp.0 + tcp.0, lost.tcp.1 + tcp.1);
            lost.udp = (lost.udp.0 + udp.0, lost.udp.1 + udp.1);
        }
        for mut session in self.sessions {
            let works = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.still_works()));
            lost.sessions.0 += usize::from(works.is_err());
        }
        lost
    }
}

fn probe((client, to): &(Client<'_>, SocketAddr), pause: Duration, stop: &AtomicBool) -> [Count; 2] {
    let mut counts = [(0, 0); 2];
    while !stop.load(Ordering::Relaxed) {
        for (protocol, (lost, tried)) in [Protocol::Tcp, Protocol::Udp].into_iter().zip(&mut counts) {
            *tried += 1;
            *lost += usize::from(client.try_within(protocol, *to, PROBE_TIMEOUT).is_err());
        }
        std::thread::sleep(pause);
    }
    counts
}
