//! The way back: replies of an endpoint, as packets of an established connection.
//!
//! They are walked as the rules meet them: conntrack restores the client's address before they are routed, and the Service's
//! address after all filters. NAT chains see only the first packet of a connection.

use std::net::SocketAddr;

use proxier_inspect::node::paths::Paths;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, ConnState, Origin, Packet, Verdict};

use super::{Cause, Finding, Following, refusal};
use crate::diagnose::forwarding::is_routed;

/// The most endpoints whose replies are followed for one connection.
const MOST: usize = 16;

impl Following<'_> {
    /// What refuses the replies to a packet on these ways. Replies that cannot be followed are noted as unchecked.
    ///
    /// # Errors
    /// If rules cannot be read.
    pub(super) fn replies(
        &mut self,
        view: &ServicePortView,
        packet: &Packet,
        branches: &[Branch],
        paths: &mut Paths<'_>,
    ) -> Result<Vec<Finding>, String> {
        let mut findings = Vec::new();
        let delivered = |branch: &&Branch| matches!(branch.outcome.verdict, Verdict::Delivered(_));
        for (at, branch) in branches.iter().filter(delivered).enumerate() {
            let reply = if at < MOST && self.facts.mode != Some("ipvs") { reply(packet, branch, paths) } else { None };
            let Some(reply) = reply else {
                self.walks.replies_unchecked = true;
                continue;
            };
            match self.refused(view, (packet, branch), &reply, paths)? {
                Some(found) => findings.extend(found),
                None => self.walks.replies_unchecked = true,
            }
        }
        Ok(findings)
    }

    /// The refusal of a reply, if there is one; `None` if that is not known.
    fn refused(
        &mut self,
        view: &ServicePortView,
        (packet, branch): (&Packet, &Branch),
        reply: &Packet,
        paths: &mut Paths<'_>,
    ) -> Result<Option<Option<Finding>>, String> {
        let trace = paths.trace(reply)?;
        if !trace.missing.is_empty() || trace.branches.iter().any(|way| !way.doubts.is_empty()) {
            return Ok(None);
        }
        let is_refused = |way: &&Branch| matches!(way.outcome.verdict, Verdict::Dropped | Verdict::Rejected);
        let Some(way) = trace.branches.iter().find(is_refused) else { return Ok(Some(None)) };
        let Some(found) = refusal(view, reply, way) else { return Ok(None) };
        // Replies of other machines may come in elsewhere, and before NAT they have the node's address.
        let from_here = matches!(reply.origin, Origin::Host) || self.facts.pods.contains(&reply.source.ip());
        let last = way.steps.last().map(|step| step.hook.to_uppercase()).unwrap_or_default();
        let is_early = branch.outcome.masqueraded && packet.origin != Origin::Host && last.contains("PREROUTING");
        let certain =
            found.certain && from_here && !is_early && trace.branches.len() == 1 && self.routes.decides(reply);
        let share = branch.outcome.probability * 100.0;
        let what = format!("{}; this is a reply: {share:.0} % of connections get no answer", found.what);
        Ok(Some(Some(Finding { cause: Cause::ReplyRefused, certain, what, ..found })))
    }
}

/// The reply to a packet as rules meet it; `None` if it is not known where it enters, or it never leaves the node.
fn reply(packet: &Packet, branch: &Branch, paths: &Paths<'_>) -> Option<Packet> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    let (node, is_of_host) = (paths.node(), packet.origin == Origin::Host);
    let origin = match node.is_local(to.ip()) {
        true if is_of_host => return None,
        true => Origin::Host,
        false => Origin::Interface(node.out_interface(to.ip())?.to_owned()),
    };
    let kept = if to == packet.destination { ConnState::Established } else { ConnState::EstablishedDnat };
    let client: SocketAddr = packet.source;
    // The node sends to pods from another address then.
    if !is_routed(client.ip()) {
        return None;
    }
    Some(Packet { source: to, destination: client, protocol: packet.protocol, origin, state: kept })
}
