//! The rules of both families, and the mode of the kube-proxy whose they are.

use std::collections::BTreeSet;

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, FlavourChoice};
use proxier::model::{NamespacedName, ServicePortName};

use super::flavours::{Flavours, LANDMARK};
use super::{FamilyRules, Focus, Unread};
use crate::rules::Rule;
use crate::services::{DispatchRule, dispatch_within};

/// The name of nftables mode.
pub const NFTABLES: &str = "nftables";

/// The number of attempts to read the rules of one moment.
const TRIES: u32 = 3;

/// All rules.
pub struct NodeRulesets {
    /// How the flavour was chosen.
    pub choice: FlavourChoice,
    /// The flavour that was read.
    pub flavour: Flavour,
    /// The families that could be read.
    pub families: Vec<FamilyRules>,
    /// Families that have kube-proxy's rules in the flavour that is not in use.
    pub in_other: Vec<IpFamily>,
    /// Whether the proxy is configured for nftables mode: its table then counts, and not what is left of another mode.
    pub is_nftables_configured: bool,
}

impl NodeRulesets {
    /// Reads them. `is_compared`: they are compared with objects.
    pub fn read(focus: &Focus, is_compared: bool, unread: &mut Vec<Unread>) -> Self {
        let mut found = Flavours::find();
        unread.extend(found.choice.unread.iter().map(|why| Unread::new("which flavour of iptables rules are in", why)));
        let mut families = Vec::new();
        // A family that the kernel has not has no rules to be read.
        for family in IpFamily::ALL.into_iter().filter(|family| family.available().is_ok()) {
            let mut tries = if focus.is_everything() { 1 } else { TRIES };
            let (read, notes) = loop {
                tries -= 1;
                let mut notes = Vec::new();
                let read = FamilyRules::read(family, &mut found, (focus, is_compared), &mut notes);
                match read.as_ref().ok().and_then(FamilyRules::unsteady) {
                    Some(_) if tries > 0 => {}
                    note => {
                        notes.extend(note);
                        break (read, notes);
                    }
                }
            };
            unread.extend(notes);
            match read {
                Ok(rules) => families.push(rules),
                Err(why) => unread.push(Unread::new(&format!("rules of {family}"), why)),
            }
        }
        let Flavours { choice, flavour, in_other, .. } = found;
        Self { choice, flavour, families, in_other, is_nftables_configured: false }
    }

    /// Those of a family.
    #[must_use]
    pub fn of(&self, family: IpFamily) -> Option<&FamilyRules> {
        self.families.iter().find(|rules| rules.family == family)
    }

    /// The mode whose rules these are. IPVS mode has a chain `KUBE-SERVICES` too.
    #[must_use]
    pub fn mode(&self) -> Option<&'static str> {
        let has_table = || self.families.iter().any(|rules| rules.proxy_table().is_some());
        match () {
            () if self.is_nftables_configured && has_table() => Some(NFTABLES),
            () if self.families.iter().any(|rules| rules.held.is_some()) => Some("ipvs"),
            () if self.any() => Some("iptables"),
            () => has_table().then_some(NFTABLES),
        }
    }

    /// Whether the data of a Service depends on others. Only in iptables mode each Service has its own rules; in other
    /// modes the first Service by name owns an address that several claim, and all claimants decide which flows to it are
    /// stale.
    #[must_use]
    pub fn needs_others(&self, service: &NamespacedName) -> bool {
        if self.mode().is_some_and(|mode| mode != "iptables") {
            return true;
        }
        self.families.iter().any(|rules| {
            let of_service = service.to_string();
            let is_own = |name: Option<&ServicePortName>| name.is_some_and(|name| name.service == *service);
            let is_likely = |rule: &Rule| rule.text.contains(&of_service);
            let own = dispatch_within(&rules.ruleset, &is_likely, &|name, _| is_own(name));
            let claimed: BTreeSet<_> = own.iter().filter_map(DispatchRule::destination).collect();
            let may_claim = |rule: &Rule| {
                rule.leading_destination().is_none_or(|ip| claimed.iter().any(|(claimed, ..)| *claimed == ip))
            };
            let others = dispatch_within(&rules.ruleset, &may_claim, &|name, _| !is_own(name));
            let of_services = others.iter().filter(|entry| entry.name().is_some() || entry.jump_target().is_some());
            of_services.filter_map(DispatchRule::destination).any(|to| claimed.contains(&to))
        })
    }

    /// Whether there is a kube-proxy's rule at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.families.iter().any(|rules| rules.ruleset.chain("nat", LANDMARK).is_some())
    }
}
