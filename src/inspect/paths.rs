//! Packets' ways through the rules in the kernel.
//!
//! In: packets. Out: their [`Trace`]s; of the rules only those are read that a packet meets, where that is cheaper.
//! Must not know: Services.

use std::collections::BTreeSet;

use proxier::IpFamily;
use proxier::inspect::walk::{Memory, Node, Packet, Trace};
use proxier::kernel::{last_seen, node};

use super::report::Unread;
use super::rules::FamilyRules;

/// The rules of one family, for walking.
pub struct Paths {
    rules: FamilyRules,
    node: Node,
}

impl Paths {
    /// Reads what every packet meets.
    ///
    /// # Errors
    /// If the family's rules cannot be read.
    pub fn read(family: IpFamily) -> Result<Self, String> {
        let mut unread: Vec<Unread> = Vec::new();
        let rules = FamilyRules::for_walking(family, &mut unread)?;
        for unread in unread {
            eprintln!("cannot read {}: {}", unread.what, unread.why);
        }
        Ok(Self::of(rules))
    }

    /// Rules that were read already.
    #[must_use]
    pub fn of(rules: FamilyRules) -> Self {
        let node = Node { addresses: rules.addresses.clone(), routes: node::routes(rules.family) };
        // Loopback addresses are always local; masquerading takes another one.
        let addresses = node.addresses.iter().copied().filter(|ip| !ip.is_loopback()).collect();
        Self { rules, node: Node { addresses, ..node } }
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Walks a packet, as one whose sender the kernel remembers where it does.
    ///
    /// # Errors
    /// If rules cannot be read, or are such as the kernel would not take.
    pub fn trace(&mut self, packet: &Packet) -> Result<Trace, String> {
        let mut memory = Memory::new();
        let mut tried: BTreeSet<(String, String)> = BTreeSet::new();
        loop {
            let trace = self.rules.ruleset.trace(packet, &self.node, &memory)?;
            let new: BTreeSet<_> = trace.missing.difference(&tried).cloned().collect();
            if !new.is_empty() && self.rules.load(&new)? {
                tried.extend(new);
                continue;
            }
            let remembered: Memory = trace
                .asked
                .iter()
                .filter_map(|list| Some((list.clone(), last_seen(list, packet.source.ip())?)))
                .collect();
            if remembered == memory {
                return Ok(trace);
            }
            memory = remembered;
        }
    }
}
