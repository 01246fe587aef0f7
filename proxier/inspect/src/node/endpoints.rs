//! Endpoints on this node: the network namespace that has an endpoint's address, the sockets in it, and the neighbour that packets
//! to an endpoint are handed to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netfilter::kernel::{
    self, BoundSocket, NamespaceAddresses, NetworkNamespace, VisibleNamespaces, namespace_addresses, read_in_namespaces,
};
use proxier::model::Protocol;

pub use netfilter::kernel::{Neighbour, NeighbourState, NextHop};

/// How long reading all namespaces of a node may take.
const TIME_LIMIT: Duration = Duration::from_secs(1);
/// The name of the process that holds a pod's namespaces and does nothing else.
const PAUSE: &str = "pause";
/// How long a neighbour may take to answer: the kernel asks again after a second.
const ANSWER_TIME: Duration = Duration::from_millis(1100);

/// The namespaces of pods, read once for some addresses.
#[derive(Debug, Default)]
pub struct PodNamespaces {
    homes: BTreeMap<IpAddr, Vec<Home>>,
    /// Why not all of them were read.
    unread: Option<String>,
}

/// A namespace that has an address.
#[derive(Clone, Debug)]
struct Home {
    namespace: NetworkNamespace,
    /// The index of the interface with the address.
    interface: u32,
}

/// Whether a process takes new connections or packets at an endpoint's address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    /// One does; what is assumed of it.
    Yes(Option<String>),
    /// None does.
    No(NotListening),
    /// The address is in no namespace that was found.
    NotFound,
    /// It could not be read, and why.
    Unknown(String),
}

/// What a namespace has instead of a socket for an address and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotListening {
    /// The ID and name of a process in the namespace, of the endpoint's pod; `None` for the node's own, or without a process.
    pub process: Option<(u32, String)>,
    /// The addresses at which sockets have the port, which do not cover the endpoint's.
    pub same_port: BTreeSet<IpAddr>,
    /// The ports where sockets would take packets to the endpoint's address.
    pub other_ports: BTreeSet<u16>,
    /// What may take the packets nevertheless.
    pub doubts: Vec<&'static str>,
}

impl PodNamespaces {
    /// Finds the namespaces that have these addresses and hang on the calling thread's namespace.
    #[must_use]
    pub fn with(addresses: &BTreeSet<IpAddr>) -> Self {
        let until = Instant::now() + TIME_LIMIT;
        let visible = match VisibleNamespaces::list() {
            Ok(visible) => visible,
            Err(error) => return Self { unread: Some(format!("/proc: {error}")), ..Self::default() },
        };
        let all: Vec<&NetworkNamespace> = visible.others.iter().collect();
        let has = |found: &NamespaceAddresses| found.addresses.iter().any(|(_, ip)| addresses.contains(ip));
        let look = |node: &std::fs::File| namespace_addresses(node).map(|found| Some(found).filter(has));
        let reads = match read_in_namespaces(&all, until, look) {
            Ok(reads) => reads,
            Err(error) => return Self { unread: Some(error.to_string()), ..Self::default() },
        };
        let mut homes: BTreeMap<IpAddr, Vec<Home>> = BTreeMap::new();
        for (at, found) in reads.found.into_iter().filter(|(_, found)| found.is_attached) {
            for (interface, ip) in found.addresses.into_iter().filter(|(_, ip)| addresses.contains(ip)) {
                homes.entry(ip).or_default().push(Home { namespace: visible.others[at].clone(), interface });
            }
        }
        let refused = || format!("the namespaces of {} processes may not be read, which takes root", visible.refused);
        let failed =
            reads.failed.map(|error| format!("a namespace cannot be entered, which takes CAP_SYS_ADMIN: {error}"));
        let late = || format!("reading {} namespaces took more than {TIME_LIMIT:?}", all.len());
        let unread = failed.or_else(|| reads.timed_out.then(late)).or_else(|| (visible.refused > 0).then(refused));
        Self { homes, unread }
    }

    /// Whether a namespace on this node has the address.
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        self.homes.contains_key(&ip)
    }

    /// Whether all namespaces were read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unread.is_none()
    }

    /// Whether a process in the namespace of a pod listens there.
    #[must_use]
    pub fn listening(&self, at: SocketAddr, protocol: Protocol) -> Listening {
        let homes = self.homes.get(&at.ip()).map_or(&[][..], Vec::as_slice);
        let home = match (homes, &self.unread) {
            ([home], _) => home,
            ([], None) => return Listening::NotFound,
            ([], Some(why)) => return Listening::Unknown(why.clone()),
            (several, _) => {
                return Listening::Unknown(format!("{} namespaces on this node have the address", several.len()));
            }
        };
        let look = |_: &std::fs::File| {
            let sockets = kernel::bound_sockets(name(protocol))?;
            Ok(Some((sockets, kernel::interceptors()?)))
        };
        let reads = match read_in_namespaces(&[&home.namespace], Instant::now() + TIME_LIMIT, look) {
            Ok(reads) => reads,
            Err(error) => return Listening::Unknown(error.to_string()),
        };
        match (reads.found.into_iter().next(), reads.failed) {
            (Some((_, (sockets, doubts))), _) => {
                let is_here = |socket: &BoundSocket| socket.device.is_none_or(|on| on == 0 || on == home.interface);
                decide(at, protocol, sockets, doubts, is_here, process_of(&home.namespace))
            }
            (None, Some(error)) => Listening::Unknown(error.to_string()),
            (None, None) => Listening::Unknown("its namespace ended meanwhile".to_owned()),
        }
    }
}

/// Whether a process in the node's own namespace listens there.
#[must_use]
pub fn listening_here(at: SocketAddr, protocol: Protocol) -> Listening {
    match kernel::bound_sockets(name(protocol)) {
        Ok(sockets) => decide(at, protocol, sockets, Vec::new(), |_| true, None),
        Err(error) => Listening::Unknown(error.to_string()),
    }
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// A process of a namespace: of a pod, the first that does more than hold it.
fn process_of(namespace: &NetworkNamespace) -> Option<(u32, String)> {
    let named = || namespace.processes.iter().map(|pid| (*pid, kernel::process_name(*pid)));
    named().find(|(_, name)| !name.is_empty() && name != PAUSE).or_else(|| named().next())
}

fn decide(
    at: SocketAddr,
    protocol: Protocol,
    sockets: Option<Vec<BoundSocket>>,
    mut doubts: Vec<&'static str>,
    is_here: impl Fn(&BoundSocket) -> bool,
    process: Option<(u32, String)>,
) -> Listening {
    let Some(sockets) = sockets else {
        return Listening::Yes(Some(format!("a process listens at {at}: sockets of {protocol:?} are not listed")));
    };
    let (there, elsewhere): (Vec<&BoundSocket>, Vec<&BoundSocket>) =
        sockets.iter().partition(|one| one.port == at.port());
    let takes =
        |socket: &&&BoundSocket| is_here(socket) && !socket.is_connected && socket.covers(at.ip()) != Some(false);
    if there.iter().any(|socket| takes(&socket) && socket.covers(at.ip()) == Some(true)) {
        let filtered = doubts.contains(&kernel::FILTER_RULES);
        return Listening::Yes(
            filtered.then(|| format!("the packet filter rules in the network namespace of {at} let packets in")),
        );
    }
    if there.iter().any(|socket| takes(&socket)) {
        return Listening::Yes(Some(format!("the socket at [::]:{} takes IPv4 too", at.port())));
    }
    if there.iter().any(|socket| socket.is_connected && socket.covers(at.ip()) != Some(false)) {
        doubts.push("a connected socket, which takes packets of one client");
    }
    if there.iter().any(|socket| !is_here(socket)) {
        doubts.push("a socket bound to another interface");
    }
    let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    let others = elsewhere.iter().filter(|socket| takes(socket) && !is_loopback(socket.address));
    Listening::No(NotListening {
        process,
        same_port: there
            .iter()
            .filter(|socket| !socket.is_connected)
            .map(|socket| socket.address.to_canonical())
            .collect(),
        other_ports: others.map(|socket| socket.port).collect(),
        doubts,
    })
}

/// The next hop of packets to an address if it does not answer: it, and how long that is so.
///
/// An entry is read again where the kernel has just begun to ask.
///
/// # Errors
/// If routes or neighbours cannot be read.
pub fn silent_neighbour(to: IpAddr) -> io::Result<Option<(NextHop, Neighbour)>> {
    let Some(hop) = kernel::next_hop(to)? else { return Ok(None) };
    let read = || kernel::neighbour(hop.address, &hop.device);
    let mut found = read()?;
    let is_asking = |entry: &Neighbour| entry.state == NeighbourState::Incomplete && entry.age < ANSWER_TIME;
    if found.as_ref().is_some_and(is_asking) {
        std::thread::sleep(ANSWER_TIME);
        found = read()?;
    }
    Ok(found.filter(|entry| entry.state != NeighbourState::Other).map(|entry| (hop, entry)))
}
