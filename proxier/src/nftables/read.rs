//! Reads the table and the numbers of the endpoints in it.

use std::net::{IpAddr, SocketAddr};

use netfilter::kernel::nftables::{NftError, ReadTable};
use netfilter::nft::{Bytes, Element, Key, Set, Table, Value};
use tracing::{debug, info};

use super::names::{self, ChainEndpoints, Policy, SetId, VipOrNodePort};
use super::numbers::NumberedEndpoints;
use super::plan::ElementIndex;
use super::port_spec::PortSpec;
use super::settings::NftablesSettings;
use super::{Nftables, structure};

/// The number of consecutive unused numbers after which no endpoint of a Service with affinity is found.
const MAX_NUMBER_GAP: usize = 16;

/// The set size from which elements are looked up by key.
///
/// Listing takes the kernel quadratic time: for each 32 KiB of output it starts over and skips what it has listed.
pub(super) const LOOKUP_THRESHOLD: usize = 131_072;

/// The table as read from the kernel.
#[derive(Debug, Default)]
pub(super) struct ObservedTable {
    pub table: Option<ReadTable>,
    /// Why the table must be replaced as a whole, if so: it is foreign or of another version.
    pub conflict: Option<String>,
    pub elements: ElementIndex,
}

impl Nftables {
    /// Reads the whole table.
    pub(super) fn observe(&mut self, settings: &NftablesSettings) -> Result<ObservedTable, NftError> {
        let table = names::table(self.family);
        let Some(read) = self.kernel.table(&table)? else { return Ok(ObservedTable::default()) };
        if let Some(owner) = read.owner {
            return Err(NftError::Owned { table: table.to_string(), owner });
        }
        if let Some(conflict) = structure::conflict(&read, &self.sets, settings) {
            info!("{}: replacing nf_tables table {table}: {conflict}", self.family);
            return Ok(ObservedTable {
                table: Some(read),
                conflict: Some(conflict),
                elements: ElementIndex::default(),
            });
        }
        let mut elements = ElementIndex::default();
        // Maps of verdicts are read before the endpoints that their verdicts refer to.
        for (id, set) in self.sets.iter().filter(|(_, set)| read.sets.contains_key(&set.name)) {
            let count = read.counts.get(&set.name).copied().filter(|count| *count >= self.lookup_threshold);
            if let (SetId::OnlyEndpoint(..) | SetId::Endpoints(..), Some(count)) = (id, count) {
                let found = by_keys(self.kernel.as_mut(), &table, id, set, &mut elements);
                match found {
                    Ok(()) if elements.count(id) == count => continue,
                    Ok(()) => {
                        debug!("listing set {}: verdicts refer to {} of {count} elements", set.name, elements.count(id))
                    }
                    Err(error) => debug!("listing set {}: cannot look up its elements: {error}", set.name),
                }
            }
            self.kernel.elements(&table, set, &mut |element| elements.insert(id, element))?;
        }
        Ok(ObservedTable { table: Some(read), conflict: None, elements })
    }
}

/// Looks up the endpoints that verdicts refer to.
fn by_keys(
    kernel: &mut dyn netfilter::kernel::NftTables,
    table: &Table,
    id: SetId,
    set: &Set,
    elements: &mut ElementIndex,
) -> Result<(), NftError> {
    let mut found = Vec::new();
    let mut lists = reachable_keys(elements, id);
    kernel.lookup(table, set, &mut lists, &mut |element| found.push(element))?;
    drop(lists);
    found.into_iter().for_each(|element| elements.insert(id, element));
    Ok(())
}

/// The keys of endpoints that verdicts refer to; in each list, a missing key ends the list.
fn reachable_keys(elements: &ElementIndex, id: SetId) -> impl Iterator<Item = Vec<Bytes>> {
    let leading = VipOrNodePort::ALL
        .into_iter()
        .flat_map(|place| [SetId::Service(place), SetId::ShortCircuit(place), SetId::LocalPolicy(place)]);
    let numbers = move |element: &Element| {
        let Some(Value::Verdict(verdict)) = &element.value else { return None };
        let leads = names::chain_endpoints(verdict.chain()?)?;
        (leads.to == id).then_some((element.key.clone(), leads))
    };
    leading.flat_map(|set| elements.of(set)).filter_map(numbers).flat_map(
        move |(key, ChainEndpoints { numbers, gaps, .. })| {
            if matches!(id, SetId::OnlyEndpoint(..)) {
                return vec![vec![key]];
            }
            let keys: Vec<Bytes> = (0..numbers).map(|number| Key::from(&key).number(number).build()).collect();
            if gaps { keys.into_iter().map(|key| vec![key]).collect() } else { vec![keys] }
        },
    )
}

/// The numbers of a Service port's endpoints in the kernel, at its first destination that has any.
pub(super) fn numbers_in(held: &ElementIndex, spec: &PortSpec, policy: Policy) -> NumberedEndpoints {
    let any = |place| held.count(SetId::Endpoints(place, policy)) > 0;
    let endpoint_map_keys = spec.endpoint_map_keys().filter(|(place, of, ..)| *of == policy && any(*place));
    let at = |set, key: &[u8]| held.get(set, key).and_then(|element| endpoint(element.value.as_ref()?));
    let mut all =
        endpoint_map_keys.map(|(place, _, ip, port)| numbers_at(at, spec.protocol, (place, policy), ip, port));
    all.find(|numbered| !numbered.is_empty()).unwrap_or_default()
}

/// The numbers of endpoints at one destination. `at` looks a key up in an endpoint map.
pub(super) fn numbers_at(
    at: impl Fn(SetId, &[u8]) -> Option<SocketAddr>,
    protocol: u8,
    which: (VipOrNodePort, Policy),
    ip: Option<IpAddr>,
    port: u16,
) -> NumberedEndpoints {
    let set = SetId::Endpoints(which.0, which.1);
    let key = ip.into_iter().fold(Key::default(), Key::address).protocol(protocol).port(port);
    let mut numbered = Vec::new();
    let mut end = 0;
    for number in 0_u32.. {
        let endpoint = at(set, key.clone().number(number).bytes());
        numbered.push(endpoint);
        if endpoint.is_some() {
            end = numbered.len();
        }
        if numbered.len() - end > MAX_NUMBER_GAP {
            break;
        }
    }
    numbered.into_iter().collect()
}

/// Decodes the data of an endpoint map element.
pub(super) fn endpoint(value: &Value) -> Option<SocketAddr> {
    let Value::Data(bytes) = value else { return None };
    let bytes: &Bytes = bytes;
    let (address, port) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let ip = match <[u8; 4]>::try_from(address) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some((ip, u16::from_be_bytes([port[0], port[1]])).into())
}
