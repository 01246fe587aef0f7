//! What the kernel holds of nf_tables besides iptables' own tables: a kube-proxy's table, and others'.
//!
//! In: a family. Out: a [`Ruleset`], and notes of what could not be read. Must not know: what it means to Services.
//! Of others' sets the elements are not read: they may be millions.

use proxier::IpFamily;
use proxier::kernel::NftReader;
use proxier::kernel::nftables::NftError;
use proxier::netfilter::nft::held::{Ruleset, Table, TableId};

use super::report::Unread;

/// Reads it.
#[must_use]
pub fn read(family: IpFamily, unread: &mut Vec<Unread>) -> Ruleset {
    let mut reader = NftReader::new(family);
    let mut ruleset = match reader.outline() {
        Ok(ruleset) => ruleset,
        Err(error) => {
            unread.push(Unread::new("tables of nf_tables", format!("{family}: {error}")));
            return Ruleset::new(family);
        }
    };
    ruleset.tables.retain(|id, table| !table.is_iptables(id));
    for (id, table) in &mut ruleset.tables {
        if let Err(error) = fill(&mut reader, id, table) {
            unread.push(Unread::new(&format!("table {id}"), error.to_string()));
        }
    }
    ruleset
}

fn fill(reader: &mut NftReader, id: &TableId, table: &mut Table) -> Result<(), NftError> {
    let rules = reader.all_rules(id)?;
    for (name, chain) in &mut table.chains {
        chain.rules = Some(rules.get(name).cloned().unwrap_or_default());
    }
    table.sets = reader.sets(id)?;
    if table.is_kube_proxy(id) {
        for (name, set) in &mut table.sets {
            set.elements = reader.elements(id, name, set)?;
        }
    }
    Ok(())
}
