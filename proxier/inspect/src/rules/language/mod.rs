//! The matches and targets of iptables, and how far a walk supports each.
//!
//! One entry for each extension of Debian's iptables package: its options with the number of their values, and
//! whether its rules are decided exactly, by an assumption, or not at all.

mod matches;
mod targets;

use matches::MATCHES;
use targets::TARGETS;

/// How a walk decides about an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As the kernel does.
    Exact,
    /// By an assumption about the packet, which the trace names.
    Assumed,
    /// Not at all: the trace names the rule and the reason.
    Doubt,
}

/// A match or a target.
#[derive(Debug)]
pub struct Extension {
    /// The extension, as `-m` or `-j` names it.
    pub name: &'static str,
    /// How a walk decides its rules.
    pub support: Support,
    /// The assumption, or the reason for a doubt; empty if exact.
    pub why: &'static str,
    /// Its options, and how many values each takes.
    pub(super) options: &'static [(&'static str, u8)],
}

impl Extension {
    /// How many values an option takes; `None` if it has no such option.
    pub(super) fn values(&self, option: &str) -> Option<u8> {
        self.options.iter().find(|(name, _)| *name == option).map(|(_, values)| *values)
    }
}

/// The match of that name; `None` if iptables has none.
#[must_use]
pub fn match_of(name: &str) -> Option<&'static Extension> {
    MATCHES.iter().find(|extension| extension.name == name)
}

/// The target of that name; `None` for a chain.
#[must_use]
pub fn target_of(name: &str) -> Option<&'static Extension> {
    TARGETS.iter().find(|extension| extension.name == name)
}

const fn exact(name: &'static str, options: &'static [(&'static str, u8)]) -> Extension {
    Extension { name, support: Support::Exact, why: "", options }
}

const fn assumed(name: &'static str, why: &'static str, options: &'static [(&'static str, u8)]) -> Extension {
    Extension { name, support: Support::Assumed, why, options }
}

const fn doubt(name: &'static str, why: &'static str, options: &'static [(&'static str, u8)]) -> Extension {
    Extension { name, support: Support::Doubt, why, options }
}
