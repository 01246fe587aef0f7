//! Translates ServiceCIDRs: the networks that cluster IPs are allocated from.

use ipnet::IpNet;
use netfilter::IpFamily;

use super::change::{Change, ObjectKey, Translation, Translator, parse_net};
use super::objects::ServiceCidr;

impl Translator {
    pub(super) fn service_cidr(key: &ObjectKey, object: &ServiceCidr) -> Translation {
        let mut nets: Vec<IpNet> = Vec::new();
        let mut problems = Vec::new();
        for (at, text) in object.spec.cidrs.iter().enumerate() {
            match parse_net(text) {
                Some(net) => nets.push(net),
                None => problems.push(key.error(format!("spec.cidrs[{at}]: {text:?} is not a network")).to_string()),
            }
        }
        let of = |family| nets.iter().copied().filter(|net| IpFamily::of_net(net) == family).collect();
        let changes = IpFamily::ALL.map(|family| (family, Change::ServiceCidr(key.name.clone(), of(family))));
        Translation { changes: changes.to_vec(), problems, node_eligible: None }
    }
}
