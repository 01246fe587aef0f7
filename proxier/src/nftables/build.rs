//! Builds a table that does not exist yet, in batches of bounded size.
//!
//! A single batch would need as much memory again as the model of the cluster. The base chains come last: no packet
//! enters the table before, so for packets it appears as a whole.

use netfilter::nft::{Bytes, Element, Key};

use super::names::{self, SetId};
use super::plan::{DesiredElement, ElementIndex, Plan};
use super::programmed::{MemberChanges, ProgrammedTable, SharedRefCounts};
use super::render::{render, render_shared};
use super::settings::RenderSettings;
use super::sync::WriteError;
use super::{Nftables, structure};
use crate::model::ServicePortName;

/// Elements per batch: about 64 KiB of netlink messages.
const BATCH_ELEMENTS: usize = 1024;

impl Nftables {
    /// Writes the table for these Service ports.
    ///
    /// `known` is the generation ID read before; the first batch requires it if `checked`. Returns the generation ID if
    /// no other process has changed nf_tables since.
    ///
    /// # Errors
    /// The cause if the first batch was refused; `Changed` if a later one was: the table must then be read, and the
    /// difference written by a plan that can name the Service ports at fault.
    pub(super) fn build(
        &mut self,
        state: &mut ProgrammedTable,
        names: &[&ServicePortName],
        known: u32,
        checked: bool,
    ) -> Result<Option<u32>, WriteError> {
        let members = count(state, names);
        let (chains, affinity_sets) = state.counts.chains.take_new();
        let state = &*state;
        let mut plan = Plan::on(names::table(self.family));
        structure::build(&mut plan, &state.settings, &self.sets, &chains, affinity_sets.end);
        let mut batches = self.send(&plan, state, checked.then_some(known))?;
        let mut batch = Vec::with_capacity(BATCH_ELEMENTS);
        let settings = state.settings.rendering();
        let owned = names.iter().map(|name| of_port(state, name, &settings));
        for elements in owned.chain(members.chunks(BATCH_ELEMENTS).map(of_all)) {
            batch.extend(elements);
            if batch.len() >= BATCH_ELEMENTS {
                batches += self.fill(std::mem::take(&mut batch), state)?;
            }
        }
        batches += self.fill(batch, state)?;
        let mut plan = Plan::on(names::table(self.family));
        structure::attach(&mut plan, &state.settings, &chains);
        batches += self.send(&plan, state, None).map_err(|_| WriteError::Changed)?;
        Ok(self.generation_after(Some(known), batches)?)
    }

    fn fill(&mut self, elements: Vec<DesiredElement<'_>>, state: &ProgrammedTable) -> Result<u32, WriteError> {
        let mut plan = Plan::on(names::table(self.family));
        plan.elements(&self.sets, ElementIndex::default(), elements);
        self.send(&plan, state, None).map_err(|_| WriteError::Changed)
    }
}

/// Counts the objects that Service ports share. Returns the members of sets.
fn count(state: &mut ProgrammedTable, names: &[&ServicePortName]) -> Vec<(SetId, Bytes)> {
    state.counts = SharedRefCounts::new();
    let mut changes = MemberChanges::default();
    let settings = state.settings.rendering();
    for name in names {
        let Some(port) = state.ports.get(*name) else { continue };
        state.counts.add(&render_shared(name, &port.spec, &settings), &mut changes);
    }
    let [_, mut members] = state.counts.settle(changes);
    let node_port_ips = state.settings.node_port_ips.iter().flatten();
    members.extend(node_port_ips.map(|ip| (SetId::NodePortIps, Key::default().address(*ip).build())));
    members
}

/// The elements of one Service port.
fn of_port<'a>(
    state: &ProgrammedTable,
    name: &'a ServicePortName,
    settings: &RenderSettings,
) -> Vec<DesiredElement<'a>> {
    let rendered = state.ports.get(name).map(|port| render(name, &port.spec, settings));
    let elements = rendered.into_iter().flat_map(|rendered| rendered.elements);
    elements.map(|(set, element)| DesiredElement { owner: Some(name), set, element }).collect()
}

/// The elements that Service ports share.
fn of_all<'a>(members: &[(SetId, Bytes)]) -> Vec<DesiredElement<'a>> {
    let element =
        |(set, key): &(SetId, Bytes)| DesiredElement { owner: None, set: *set, element: Element::member(key.clone()) };
    members.iter().map(element).collect()
}
