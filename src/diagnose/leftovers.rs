//! Rules that an earlier kube-proxy left, in another mode or in another flavour of iptables, and that decide about packets.

use proxier::nftables::TABLE;
use proxier_inspect::neighbours::owner;
use proxier_inspect::node::NFTABLES;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Packet, Step, Verdict};

use super::finding::{Cause, Finding};

/// What to do about them.
const NEXT: &str = "remove what the other kube-proxy left: see whether the log of the running one says that it does, or \
                    delete it by hand (nft delete table ip kube-proxy; the chains KUBE-… of iptables, or a restart of the \
                    node)";

/// Words of rules that give a packet another destination.
const TRANSLATING: [&str; 3] = ["-j DNAT", "dnat", "-j REDIRECT"];

/// A packet whose fate such rules decided, as the walk shows: sent to what is no endpoint, or refused.
///
/// `mode`: the mode of the rules that should decide.
pub fn decided(view: &ServicePortView, packet: &Packet, branch: &Branch, mode: Option<&str>) -> Option<Finding> {
    let (rule, does) = match branch.outcome.verdict {
        Verdict::Delivered(to) => {
            let is_endpoint = view.endpoints.iter().any(|one| one.address == Some(to) && one.exists());
            let translates = |step: &&Step| TRANSLATING.iter().any(|word| step.rule.contains(word));
            let rule = branch.steps.iter().rfind(translates).filter(|_| !is_endpoint)?;
            (rule, format!("send it to {to}, which is no endpoint of the Service"))
        }
        Verdict::Dropped | Verdict::Rejected if branch.unrouted.is_none() => {
            (branch.steps.last()?, "refuse it".to_owned())
        }
        _ => return None,
    };
    let (cause, left) = left_by(rule, mode)?;
    let what = format!(
        "{} ({}): {packet} meets rules that a kube-proxy left {left}, and these decide: they {does}",
        view.name, view.family
    );
    let finding = Finding::certain(cause, what, NEXT).shown_by(format!("{}: {}", rule.hook, rule.rule));
    Some(Finding { certain: branch.is_certain(), ..finding })
}

/// Which kube-proxy's rule it is, if not that of the mode and flavour in use, and the cause that it is.
fn left_by(rule: &Step, mode: Option<&str>) -> Option<(Cause, String)> {
    if rule.handle.is_some() {
        let in_table = rule.hook.split(' ').nth(1) == Some(TABLE);
        return (in_table && mode != Some(NFTABLES)).then(|| (Cause::TwoProxies, "in nftables mode".to_owned()));
    }
    let chain = rule.rule.strip_prefix("-A ")?.split(' ').next()?;
    if owner(chain) != Some("kube-proxy") {
        return None;
    }
    // A step in the other flavour has its name before table and hook.
    let flavour = (rule.hook.split(' ').count() == 3).then(|| rule.hook.split(' ').next()).flatten();
    match flavour {
        Some(flavour) => Some((Cause::WrongFlavour, format!("in the {flavour} flavour of iptables"))),
        None => (mode == Some(NFTABLES)).then(|| (Cause::TwoProxies, "in iptables or IPVS mode".to_owned())),
    }
}
