//! Rules shared by modes: masquerading of marked packets, and matches on local traffic.

use std::sync::Arc;

use netfilter::iptables::{Comment, Match, Negatable, Rule, Suffix, Target};

use crate::model::config::LocalTraffic;

/// The last rules of KUBE-POSTROUTING.
#[must_use]
pub fn postrouting(mark: u32, random_fully: bool) -> Vec<Rule> {
    vec![
        Rule { matches: vec![Match::Mark(Negatable::not(mark))], ..target(Target::Return) },
        // Clear the mark: a packet that traverses the stack twice (a tunnel's) is masqueraded once.
        target(Target::FlipMark(mark)),
        Rule {
            matches: vec![comment("kubernetes service traffic requiring SNAT")],
            ..target(Target::Masquerade { random_fully })
        },
    ]
}

/// The one rule of KUBE-MARK-MASQ.
#[must_use]
pub fn mark(mark: u32) -> Rule {
    target(Target::SetMark(mark))
}

/// The last rules of KUBE-FORWARD.
#[must_use]
pub fn forward(mark: u32) -> [Rule; 2] {
    let established = Match::CtState(Negatable::new("RELATED,ESTABLISHED"));
    let accept = |matches| Rule { matches, ..target(Target::Accept) };
    [
        accept(vec![comment("kubernetes forwarding rules"), Match::Mark(Negatable::new(mark))]),
        accept(vec![comment("kubernetes forwarding conntrack rule"), established]),
    ]
}

/// Restricts a rule to traffic from this node's pods, or with `not` to all other traffic.
pub fn from_local_traffic(rule: &mut Rule, local: &LocalTraffic, not: bool) {
    match local {
        LocalTraffic::From(net) => rule.source = Some(Negatable { not, value: *net }),
        LocalTraffic::Interface(name) => rule.in_interface = Some(Negatable { not, value: name.clone() }),
        LocalTraffic::InterfacePrefix(prefix) => {
            rule.in_interface = Some(Negatable { not, value: format!("{prefix}+") });
        }
    }
}

/// A rule without matches.
#[must_use]
pub fn target(target: Target) -> Rule {
    Rule { target: Some(target), ..Rule::default() }
}

/// A comment match with fixed text that needs no quoting.
#[must_use]
pub fn comment(text: &'static str) -> Match {
    Match::Comment(Comment { prefix: text, subject: Arc::default(), suffix: Suffix::Text("") })
}
