//! What `dump` tells, as data: the schema of its JSON.
//!
//! `src/dump/README.md` documents the schema. New fields keep its version; a removed field or a changed meaning raises it.

use proxier_inspect::drift::Difference;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::{Focus, Unread};
use proxier_inspect::services::ServicePortView;
use serde::Serialize;

use super::NodeInspection;

/// The name and version of the schema.
pub const SCHEMA: &str = "kube-proxy.dump/v1";

/// A rule of another program that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotUnderstood {
    /// Table and chain.
    pub place: String,
    /// The rule.
    pub rule: String,
    /// What of it.
    pub why: String,
}

/// All that `dump` tells.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The selected Service ports.
    pub services: Vec<ServicePortView>,
    /// What differs from what should be; absent without a source of objects.
    pub differences: Option<Vec<Difference>>,
    /// Chains of Service ports that no rule jumps to.
    pub unused_chains: Vec<String>,
    /// Rules of others that are not understood.
    pub not_understood: Vec<NotUnderstood>,
    /// What could not be read.
    pub unread: Vec<Unread>,
    /// The running proxy that the configuration was taken from, in one line.
    pub configuration: Option<String>,
    /// The node.
    pub facts: Facts,
}

impl Report {
    /// Puts it together; includes what `inspection` could not read.
    #[must_use]
    pub fn of(inspection: &mut NodeInspection, focus: &Focus) -> Self {
        let services = inspection.services(focus);
        let differences = inspection.differences(focus, &services);
        let not_understood = inspection.rules.families.iter().flat_map(|rules| {
            let found = proxier_inspect::neighbours::not_understood(&rules.ruleset);
            let marks = rules.held.iter().flat_map(|held| &held.marks).map(|(mark, scheduler)| {
                let why = format!(
                    "a virtual server of firewall mark {mark}: packets with it go there, whatever their address"
                );
                ("ipvs".to_owned(), format!("-A -f {mark} -s {scheduler}"), why)
            });
            let found: Vec<_> = found.into_iter().chain(marks).collect();
            found.into_iter().map(|(place, rule, why)| NotUnderstood { place, rule, why })
        });
        Self {
            schema: SCHEMA,
            not_understood: not_understood.collect(),
            unused_chains: inspection.unused_chains(),
            facts: Facts::of(&inspection.rules),
            configuration: inspection.configuration.clone(),
            services,
            differences,
            unread: std::mem::take(&mut inspection.unread),
        }
    }
}
