//! Plans the operations that turn a virtual server into the desired one.
//!
//! Operations that make connections possible are separate from operations that end them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use netfilter::ipvs::{Connections, Forward, Operation, RealServer, ServerKey, VirtualServer};

use super::graceful::{Deadlines, Retained};

/// A virtual server with its active real servers, as desired or as last synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// The virtual server itself.
    pub server: VirtualServer,
    /// The addresses of active real servers, in order.
    pub reals: Arc<[SocketAddr]>,
}

impl ServerSpec {
    /// The same without one real server.
    #[must_use]
    pub fn without(&self, address: SocketAddr) -> Self {
        Self { server: self.server, reals: self.reals.iter().copied().filter(|real| *real != address).collect() }
    }
}

/// A virtual server as the kernel has it.
#[derive(Clone, Debug)]
pub struct CurrentServer {
    /// The virtual server itself.
    pub server: VirtualServer,
    /// Its real servers, with connection counts where they were read.
    pub reals: Vec<(RealServer, Option<Connections>)>,
}

impl CurrentServer {
    /// The state that the last sync wrote, without reading the kernel.
    #[must_use]
    pub fn remembered(spec: &ServerSpec, draining: Option<&Deadlines>) -> Self {
        let active = spec.reals.iter().map(|&address| (real(address, 1), None));
        let draining = draining.into_iter().flatten().map(|(&address, _)| (real(address, 0), None));
        Self { server: spec.server, reals: active.chain(draining).collect() }
    }
}

/// A real server as this mode configures it.
#[must_use]
pub fn real(address: SocketAddr, weight: u32) -> RealServer {
    RealServer { address, forward: Forward::Masquerade, weight }
}

fn is_removed(desired: Option<&ServerSpec>, address: &SocketAddr) -> bool {
    desired.is_none_or(|desired| desired.reals.binary_search(address).is_err())
}

/// Whether a real server is to be removed whose connections must be counted first.
#[must_use]
pub fn has_to_count(
    key: ServerKey,
    desired: Option<&ServerSpec>,
    spec: &ServerSpec,
    draining: Option<&Deadlines>,
    retained: Retained<'_>,
) -> bool {
    let mut current = spec.reals.iter().chain(draining.into_iter().flat_map(Deadlines::keys));
    current.any(|address| !retained.period(key.protocol, address).is_zero() && is_removed(desired, address))
}

/// The planned operations on a virtual server.
#[derive(Debug, Default)]
pub struct Plan {
    /// Operations that make connections possible.
    pub make: Vec<Operation>,
    /// Operations that end connections.
    pub end: Vec<Operation>,
    /// The real servers that are terminating afterwards.
    pub draining: Deadlines,
    /// Whether the virtual server exists afterwards.
    pub stays: bool,
}

/// Plans the operations on one virtual server.
#[must_use]
pub fn plan(
    key: ServerKey,
    desired: Option<&ServerSpec>,
    found: Option<&CurrentServer>,
    draining: Option<&Deadlines>,
    retained: Retained<'_>,
    now: Instant,
) -> Plan {
    let mut plan = Plan::default();
    let reals = found.map_or(&[][..], |found| &found.reals);
    if let Some(desired) = desired {
        match found {
            None => plan.make.push(Operation::AddVirtual(desired.server)),
            Some(found) if found.server != desired.server => plan.make.push(Operation::UpdateVirtual(desired.server)),
            Some(_) => {}
        }
        plan.make.extend(missing(key, desired, reals));
    }
    for (server, connections) in reals.iter().filter(|(server, _)| is_removed(desired, &server.address)) {
        let deadline = draining.and_then(|draining| draining.get(&server.address)).copied();
        let latest = now + retained.period(key.protocol, &server.address);
        let deadline = deadline.map_or(latest, |deadline| deadline.min(latest));
        let in_use = connections.is_some_and(|connections| !connections.none());
        if in_use && now < deadline {
            plan.draining.insert(server.address, deadline);
            if server.weight != 0 {
                plan.end.push(Operation::UpdateReal(key, RealServer { weight: 0, ..*server }));
            }
        } else {
            plan.end.push(Operation::DeleteReal(key, server.address));
        }
    }
    plan.stays = desired.is_some() || !plan.draining.is_empty();
    if found.is_some() && !plan.stays {
        // Its real servers are deleted with it.
        plan.end = vec![Operation::DeleteVirtual(key)];
    }
    plan
}

/// Operations that add missing real servers and correct existing ones.
fn missing<'a>(
    key: ServerKey,
    desired: &'a ServerSpec,
    current: &'a [(RealServer, Option<Connections>)],
) -> impl Iterator<Item = Operation> + 'a {
    let mut found: Vec<&RealServer> = current.iter().map(|(server, _)| server).collect();
    found.sort_unstable_by_key(|server| server.address);
    desired.reals.iter().filter_map(move |&address| {
        let server = real(address, 1);
        match found.binary_search_by_key(&address, |server| server.address) {
            Err(_) => Some(Operation::AddReal(key, server)),
            // A terminating real server keeps its connections.
            Ok(at) if *found[at] != server => Some(Operation::UpdateReal(key, server)),
            Ok(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::graceful;
    use super::*;
    use netfilter::ipvs::{Flags, Scheduler, TCP, UDP};

    const A: &str = "10.1.0.1:80";
    const B: &str = "10.1.0.2:80";

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn spec(protocol: u8, reals: &[&str]) -> ServerSpec {
        let key = ServerKey { address: address("10.96.0.1:80"), protocol };
        let server = VirtualServer { key, scheduler: Scheduler::new("rr"), flags: Flags::default(), persistence: None };
        ServerSpec { server, reals: reals.iter().map(|text| address(text)).collect() }
    }

    fn found(protocol: u8, reals: &[(&str, u32, u32)]) -> CurrentServer {
        let count = |active| Some(Connections { active, ..Connections::default() });
        let reals = reals.iter().map(|&(text, weight, active)| (real(address(text), weight), count(active)));
        CurrentServer { server: spec(protocol, &[]).server, reals: reals.collect() }
    }

    fn words(plan: &Plan) -> Vec<String> {
        plan.make.iter().chain(&plan.end).map(|operation| format!("{operation:?}")).map(short).collect()
    }

    fn short(operation: String) -> String {
        let weight = ["weight: 0", "weight: 1"].iter().find(|weight| operation.contains(**weight));
        let to = [A, B].iter().find(|text| operation.contains(**text));
        let name = operation.split('(').next().unwrap_or_default();
        [Some(name), to.copied(), weight.copied()].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    fn plan_of(
        desired: Option<&ServerSpec>,
        found: Option<&CurrentServer>,
        draining: Option<&Deadlines>,
        now: Instant,
    ) -> Plan {
        let key =
            desired.map(|desired| desired.server.key).or(found.map(|found| found.server.key)).expect("one of them");
        plan(key, desired, found, draining, Retained::ByProtocol, now)
    }

    #[test]
    fn a_removed_real_server_with_connections_terminates_gracefully() {
        let now = Instant::now();
        let desired = spec(TCP, &[A]);
        let in_use = found(TCP, &[(A, 1, 0), (B, 1, 3)]);
        let begun = plan_of(Some(&desired), Some(&in_use), None, now);
        assert_eq!(words(&begun), ["UpdateReal 10.1.0.2:80 weight: 0"]);
        assert_eq!(begun.draining, Deadlines::from([(address(B), now + graceful::GRACEFUL_TERMINATION_PERIOD)]));

        let waiting = found(TCP, &[(A, 1, 0), (B, 0, 3)]);
        let later = now + graceful::GRACEFUL_TERMINATION_PERIOD - std::time::Duration::from_secs(1);
        let still = plan_of(Some(&desired), Some(&waiting), Some(&begun.draining), later);
        assert!(words(&still).is_empty() && still.draining == begun.draining);
        let too_long =
            plan_of(Some(&desired), Some(&waiting), Some(&begun.draining), now + graceful::GRACEFUL_TERMINATION_PERIOD);
        assert_eq!(words(&too_long), ["DeleteReal 10.1.0.2:80"]);
        let idle = found(TCP, &[(A, 1, 0), (B, 0, 0)]);
        assert_eq!(
            words(&plan_of(Some(&desired), Some(&idle), Some(&begun.draining), now)),
            ["DeleteReal 10.1.0.2:80"]
        );
        let back = plan_of(Some(&spec(TCP, &[A, B])), Some(&waiting), Some(&begun.draining), now);
        assert_eq!(words(&back), ["UpdateReal 10.1.0.2:80 weight: 1"]);
    }

    #[test]
    fn only_retained_real_servers_keep_connections_if_the_service_names_them() {
        let now = Instant::now();
        let planned = |protocol, retained: &[SocketAddr], draining: Option<&Deadlines>| {
            let (desired, in_use) = (spec(protocol, &[A]), found(protocol, &[(A, 1, 0), (B, 1, 3)]));
            let (key, retained) = (desired.server.key, Retained::Only(retained));
            let counts = has_to_count(key, Some(&desired), &spec(protocol, &[A, B]), None, retained);
            let plan = plan(key, Some(&desired), Some(&in_use), draining, retained, now);
            (counts, words(&plan), plan.draining.get(&address(B)).map(|deadline| *deadline - now))
        };
        let weight_0 = vec!["UpdateReal 10.1.0.2:80 weight: 0".to_owned()];
        let all = Some(graceful::GRACEFUL_TERMINATION_PERIOD);
        for protocol in [TCP, UDP] {
            assert_eq!(planned(protocol, &[address(B)], None), (true, weight_0.clone(), all));
        }
        assert_eq!(planned(UDP, &[], None), (false, vec!["DeleteReal 10.1.0.2:80".to_owned()], None));
        let soon = Some(std::time::Duration::from_secs(5));
        assert_eq!(planned(TCP, &[], None), (true, weight_0.clone(), soon), "until its clients are known");
        let begun = Deadlines::from([(address(B), now + graceful::GRACEFUL_TERMINATION_PERIOD)]);
        assert_eq!(planned(TCP, &[], Some(&begun)), (true, weight_0, soon), "although it was terminating before");
    }

    #[test]
    fn a_removed_virtual_server_stays_until_its_connections_end() {
        let now = Instant::now();
        let gone = plan_of(None, Some(&found(TCP, &[(A, 1, 1), (B, 1, 0)])), None, now);
        assert!(gone.stays);
        assert_eq!(words(&gone), ["UpdateReal 10.1.0.1:80 weight: 0", "DeleteReal 10.1.0.2:80"]);
        let drained = plan_of(None, Some(&found(TCP, &[(A, 0, 0)])), Some(&gone.draining), now);
        assert!(!drained.stays);
        assert_eq!(words(&drained), ["DeleteVirtual"]);
        assert_eq!(words(&plan_of(None, Some(&found(UDP, &[(A, 1, 1)])), None, now)), ["DeleteVirtual"]);
    }

    #[test]
    fn only_differences_are_planned() {
        let now = Instant::now();
        let desired = spec(TCP, &[A, B]);
        assert!(words(&plan_of(Some(&desired), Some(&found(TCP, &[(B, 1, 2), (A, 1, 0)])), None, now)).is_empty());
        let all = ["AddVirtual", "AddReal 10.1.0.1:80 weight: 1", "AddReal 10.1.0.2:80 weight: 1"];
        assert_eq!(words(&plan_of(Some(&desired), None, None, now)), all);
        let other =
            ServerSpec { server: VirtualServer { scheduler: Scheduler::new("lc"), ..desired.server }, ..desired };
        let changed = plan_of(Some(&other), Some(&found(TCP, &[(A, 1, 0), (B, 5, 0)])), None, now);
        assert_eq!(words(&changed), ["UpdateVirtual", "UpdateReal 10.1.0.2:80 weight: 1"]);
    }
}
