//! Connections to an endpoint's own address, which no rule of kube-proxy translates.

use std::net::SocketAddr;

use proxier::model::Protocol;
use proxier_inspect::node::Unread;
use proxier_inspect::node::paths::Paths;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Outcome, Packet, Verdict};

use super::{Following, HOST, TargetAddress, diverted, only_the_exact, refusal, sender, undecided};

/// The Service ports that have the address as an endpoint, with that endpoint alone and without addresses of their own.
pub fn endpoints_at(views: &[ServicePortView], asked: &TargetAddress) -> Vec<ServicePortView> {
    let is_it = |view: &ServicePortView| {
        Protocol::of_name(view.protocol) == Some(asked.protocol)
            && view.endpoints.iter().any(|endpoint| endpoint.address == Some(asked.to))
    };
    let alone = |view: &ServicePortView| {
        let mut view = view.clone();
        view.addresses.clear();
        view.endpoints.retain(|endpoint| endpoint.address == Some(asked.to));
        view
    };
    views.iter().filter(|view| is_it(view)).map(alone).collect()
}

/// Whether the address is that of an endpoint, and no address of the Service.
pub fn is_endpoint(view: &ServicePortView, asked: &TargetAddress) -> bool {
    view.addresses.is_empty() && view.endpoints.iter().any(|endpoint| endpoint.address == Some(asked.to))
}

impl Following<'_> {
    /// Follows connections to an endpoint's own address: of this node and of a pod on it, or of the sender in the arguments.
    pub(super) fn follow_endpoint(
        &mut self,
        view: &ServicePortView,
        to: (SocketAddr, Protocol),
        paths: &mut Paths<'_>,
    ) -> Result<(), String> {
        let pod = super::local_pod(view, paths, self.facts).filter(|ip| *ip != to.0.ip());
        let usual = [Some(HOST.to_owned()), pod.map(|ip| ip.to_string())];
        let senders = match self.senders.from {
            Some(from) => vec![from.to_owned()],
            None => usual.into_iter().flatten().collect(),
        };
        for from in senders {
            let way = format!("{from} -> {}/{}", to.0, to.1.name().to_lowercase());
            let packet = sender(&from, to.0).and_then(|from| paths.packet(from, to, self.senders.interface));
            let packet = match packet {
                Ok(packet) => packet,
                Err(problem) => {
                    self.walks.not_followed.push(Unread::new(&way, problem));
                    continue;
                }
            };
            let trace = paths.trace(&packet)?;
            let branches: Vec<Branch> = trace.branches.iter().map(|branch| arrived(branch, to.0)).collect();
            let mut met = self.met_on_the_way(view, &packet, &branches, paths);
            met.extend(self.replies(view, &packet, &branches, paths)?);
            let arrives = |branch: &Branch| branch.outcome.verdict == Verdict::Delivered(to.0);
            self.walks.fails |= !met.is_empty() || !branches.iter().all(arrives);
            self.findings.extend(met);
            self.walks.followed.push(way);
        }
        Ok(())
    }

    fn met_on_the_way(
        &mut self,
        view: &ServicePortView,
        packet: &Packet,
        branches: &[Branch],
        paths: &Paths<'_>,
    ) -> Vec<super::Finding> {
        let mut findings = Vec::new();
        for branch in branches {
            findings.extend(refusal(view, packet, branch));
            findings.extend(diverted(view, packet, branch));
            findings.extend(self.routes.lost(view, packet, branch, self.facts));
            findings.extend(self.beyond_the_rules(view, packet, branch, paths));
            findings.extend(branch.doubts.iter().map(|doubt| undecided(packet, doubt)));
        }
        only_the_exact(&mut findings);
        findings
    }
}

/// A way whose packet keeps its destination, as one that is delivered there.
fn arrived(branch: &Branch, to: SocketAddr) -> Branch {
    let is_kept = branch.outcome.verdict == Verdict::Untouched;
    let verdict = if is_kept { Verdict::Delivered(to) } else { branch.outcome.verdict };
    Branch { outcome: Outcome { verdict, ..branch.outcome.clone() }, ..branch.clone() }
}
