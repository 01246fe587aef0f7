//! Checks that the kernel supports all features that this mode needs.

use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::kernel::nftables::{NftError, NftTables};
use netfilter::nft::{
    Address, Chain, ChainType, Field, Hook, Name, Operation, Rule, SetOperation, Statement, Table, Transaction, Verdict,
};
use thiserror::Error;

use super::names::{self, Policy, SetId, TABLE_COMMENT, VipOrNodePort};
use crate::maglev;
use crate::model::config::ServiceMetrics;
use crate::model::{EndpointHash, Snapshot};

/// The oldest kernel that kube-proxy supports in this mode.
const MIN_KERNEL: (u32, u32) = (5, 13);

/// Why nftables mode is unavailable.
#[derive(Debug, Error)]
pub enum FeatureError {
    /// The kernel is older than kube-proxy supports.
    #[error(
        "kube-proxy in nftables mode requires kernel 5.13 or later, this is {0}; \
         set KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK=1 to try it nonetheless"
    )]
    TooOld(String),
    /// The kernel lacks a feature.
    #[error("the kernel lacks {0}: enable it, or load its module")]
    Missing(String),
    /// This process may not change nf_tables.
    #[error("{0}; CAP_NET_ADMIN in the host's network namespace is needed: run kube-proxy as root there")]
    NotPermitted(NftError),
    /// The kernel could not be queried.
    #[error(transparent)]
    Kernel(#[from] NftError),
}

/// Checks that a kernel release is new enough. An unparsable release is.
///
/// # Errors
/// If it is too old.
pub fn check_release(release: &str) -> Result<(), FeatureError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < MIN_KERNEL => {
            Err(FeatureError::TooOld(release.trim().to_owned()))
        }
        _ => Ok(()),
    }
}

/// Checks that the kernel accepts all objects of this mode's table, without changing anything.
///
/// # Errors
/// The missing feature, by name.
pub fn check(kernel: &mut dyn NftTables, family: IpFamily) -> Result<(), FeatureError> {
    let mut transaction = Transaction::on(Table { family, name: "kube-proxy-probe".into() });
    let mut parts = Vec::new();
    for (part, operation) in probes(family) {
        transaction.push(operation);
        parts.push(part);
    }
    match kernel.check(&transaction) {
        Err(NftError::Refused(refusals)) => {
            let part = |index: usize| parts.get(index).copied();
            // Later refusals follow from the first one.
            let first = refusals.first();
            match first.filter(|refusal| refusal.errno != libc::EPERM).and_then(|refusal| part(refusal.operation?)) {
                Some(part) => Err(FeatureError::Missing(format!("{part} ({})", NftError::Refused(refusals)))),
                None if first.is_some_and(|refusal| refusal.errno == libc::EPERM) => {
                    Err(FeatureError::NotPermitted(NftError::Refused(refusals)))
                }
                None => Err(NftError::Refused(refusals).into()),
            }
        }
        result => Ok(result?),
    }
}

/// Whether the kernel can choose endpoints by a hash, as far as Services ask for that. Nothing is changed.
///
/// A kernel that cannot be asked can: the proxy takes it for one, too.
#[must_use]
pub fn can_hash(kernel: &mut dyn NftTables, family: IpFamily, snapshot: &Snapshot<'_>) -> bool {
    let asks = snapshot.ports.iter().any(|(_, port)| port.endpoint_hash().is_some());
    !asks || check_hash(kernel, family).is_ok()
}

/// Checks that the kernel can choose endpoints by a hash, without changing anything; returns what it lacks.
///
/// Only Services that ask for it need that.
pub(super) fn check_hash(kernel: &mut dyn NftTables, family: IpFamily) -> Result<(), String> {
    let chain: Name = "probe".into();
    let of = maglev::hashed(family, EndpointHash::Flow);
    let slot = Field::Hash { of, modulus: maglev::SLOTS, seed: maglev::SEED };
    let endpoints = SetId::Endpoints(VipOrNodePort::Address, Policy::Cluster);
    let key = [names::key(family, VipOrNodePort::Address), vec![slot]].concat();
    let choose = Statement::Dnat { family, key, map: endpoints.name().into() };
    let mut transaction = Transaction::on(Table { family, name: "kube-proxy-probe".into() });
    for operation in [
        Operation::AddTable { comment: Some(TABLE_COMMENT.into()) },
        Operation::AddChain(Chain::plain(chain.clone())),
        Operation::AddSet(Arc::new(endpoints.definition(family, ServiceMetrics::Off))),
        Operation::AddRule { chain, rule: Rule::new([choose]) },
    ] {
        transaction.push(operation);
    }
    match kernel.check(&transaction) {
        Err(error @ NftError::Refused(_)) => Err(format!(
            "the kernel lacks hashes for nf_tables (CONFIG_NFT_HASH): enable it, or load module nft_hash ({error})"
        )),
        // Other failures say nothing about hashes, and show again when the table is written.
        _ => Ok(()),
    }
}

/// One operation per kernel feature, with the feature's name.
fn probes(family: IpFamily) -> Vec<(&'static str, Operation)> {
    let chain: Name = "probe".into();
    let add = |id: SetId| Operation::AddSet(Arc::new(id.definition(family, ServiceMetrics::Off)));
    let rule = |statement| Operation::AddRule { chain: chain.clone(), rule: Rule::new([statement]) };
    let (endpoints, services) =
        (SetId::Endpoints(VipOrNodePort::Address, Policy::Cluster), SetId::Service(VipOrNodePort::Address));
    let key = names::key(family, VipOrNodePort::Address);
    let numbered = [key.clone(), vec![Field::random(2)]].concat();
    let update = Statement::UpdateSet {
        operation: SetOperation::Update,
        set: names::affinity_name(0),
        key: names::client_key(family, 0),
        timeout: Some(1),
    };
    let choose = Statement::VerdictMap {
        key: [key.clone(), vec![Field::random(2)]].concat(),
        map: SetId::Choices(VipOrNodePort::Address, Policy::Cluster).name().into(),
    };
    vec![
        ("nf_tables for this family (CONFIG_NF_TABLES)", Operation::AddTable { comment: Some(TABLE_COMMENT.into()) }),
        ("nf_tables chains", Operation::AddChain(Chain::plain(chain.clone()))),
        ("filter chains of nf_tables", Operation::AddChain(Chain::base("filter", ChainType::Filter, Hook::Forward, 0))),
        (
            "nat chains of nf_tables (CONFIG_NFT_NAT, nft_chain_nat)",
            Operation::AddChain(Chain::base("nat", ChainType::Nat, Hook::Output, -100)),
        ),
        ("maps of nf_tables", add(endpoints)),
        ("verdict maps of nf_tables", add(services)),
        ("verdict maps of nf_tables", add(SetId::Choices(VipOrNodePort::Address, Policy::Cluster))),
        ("sets of concatenated ranges (nft_set_pipapo)", add(SetId::FirewallAllowed)),
        ("sets that rules add to", Operation::AddSet(names::affinity_set(family, 0))),
        ("conntrack for nf_tables (CONFIG_NFT_CT)", rule(Statement::CtStateNew)),
        ("marks for nf_tables", rule(Statement::SetMark(1))),
        (
            "route look-ups for nf_tables (CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6)",
            rule(Statement::AddressIsLocal(Address::Source)),
        ),
        ("set look-ups for nf_tables", rule(Statement::VerdictMap { key, map: services.name().into() })),
        ("random numbers for nf_tables (CONFIG_NFT_NUMGEN)", rule(choose)),
        ("set updates for nf_tables", rule(update)),
        (
            "NAT for nf_tables (CONFIG_NFT_NAT)",
            rule(Statement::Dnat { family, key: numbered, map: endpoints.name().into() }),
        ),
        ("masquerading for nf_tables (CONFIG_NFT_MASQ)", rule(Statement::Masquerade { random: true })),
        ("reject for nf_tables (CONFIG_NFT_REJECT)", rule(Statement::Reject(family))),
        ("verdicts of nf_tables", rule(Statement::Verdict(Verdict::Drop))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for new in ["5.13.0", "5.13-rc1", "5.100.2-generic", "6.1.0-18-amd64", "10.0", "", "strange"] {
            assert!(check_release(new).is_ok(), "{new}");
        }
        for old in ["5.12.19", "4.18.0-553.el8.x86_64\n", "5.4.0-150-generic", "3.10.0"] {
            let error = check_release(old).expect_err(old).to_string();
            assert!(error.contains("requires kernel 5.13 or later, this is") && !error.contains('\n'), "{error}");
        }
    }
}
