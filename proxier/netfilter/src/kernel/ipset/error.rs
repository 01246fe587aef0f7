//! Errors of ipset, which name the object, the cause and the next step.

use std::io;

use thiserror::Error;

use super::super::netlink::NetlinkError;
use super::{SetOperation, described};
use crate::ipset::{ObservedSet, Set, SetName};

/// A failure to change or read a set.
#[derive(Debug, Error)]
pub enum IpSetError {
    /// The kernel does not support ipset.
    #[error(
        "this kernel has no ipset: load module ip_set (modprobe ip_set), or boot a kernel built with CONFIG_IP_SET, or \
         choose another mode than ipvs"
    )]
    Missing,
    /// The kernel does not support the set type.
    #[error("this kernel has no ipset type {kind}: load module {module} (modprobe {module})")]
    NoType {
        /// The type.
        kind: &'static str,
        /// The kernel module of the type.
        module: String,
    },
    /// Permission denied.
    #[error("access to ipset requires CAP_NET_ADMIN in the host's network namespace: run privileged")]
    NotPermitted,
    /// A set of that name has another type, family or size.
    #[error(
        "ipset {name} exists with another type: found {found}, wanted {wanted}; find what uses it (ipset list {name}; iptables-save) and destroy it"
    )]
    Clash {
        /// The name.
        name: SetName,
        /// The existing set.
        found: String,
        /// The requested set.
        wanted: String,
    },
    /// The object already exists.
    #[error("{0}: exists already")]
    Exists(String),
    /// The object does not exist.
    #[error("{0}: does not exist")]
    NotFound(String),
    /// Rules or other sets refer to the set.
    #[error("ipset {0} is in use: delete the rules that refer to it first (iptables-save | grep {0})")]
    InUse(SetName),
    /// The set has reached its maximum number of entries.
    #[error("{entry}: ipset {name} is full")]
    Full {
        /// The set.
        name: SetName,
        /// The rejected entry.
        entry: String,
    },
    /// The entry or the other set does not match the type or family of the set.
    #[error("{0}: type or family differs from that of the set")]
    Mismatch(String),
    /// The kernel refused the operation for another reason.
    #[error("{object}: {reason}")]
    Refused {
        /// The object of the operation.
        object: String,
        /// The kernel's error.
        reason: String,
    },
    /// The netlink socket failed.
    #[error("ipset netlink request failed: {0}")]
    Failed(#[from] io::Error),
}

impl SetOperation {
    /// The object of the operation, for messages.
    pub(crate) fn object(&self) -> String {
        match self {
            Self::Create(set) => format!("ipset {}", set.name),
            Self::Destroy(name) | Self::Flush(name) => format!("ipset {name}"),
            Self::Swap(one, other) => format!("ipsets {one} and {other}"),
            Self::Add(name, entry) | Self::AddNew(name, entry) | Self::Delete(name, entry) => {
                format!("entry {entry} of ipset {name}")
            }
        }
    }
}

impl IpSetError {
    /// The error for a set whose name is taken by a different set.
    pub(crate) fn clash(wanted: &Set, found: &ObservedSet) -> Self {
        let (found, wanted_words) = (found.described.clone(), described(wanted));
        Self::Clash { name: wanted.name, found, wanted: wanted_words }
    }

    /// The error for a set whose type this crate does not support.
    pub(crate) fn foreign(name: SetName, found: &str) -> Self {
        Self::Refused { object: format!("ipset {name}"), reason: format!("unsupported type {found}") }
    }

    /// The error for an operation on a set that does not exist.
    pub(crate) fn no_set(operation: &SetOperation) -> Self {
        match operation {
            SetOperation::Swap(..) => Self::NotFound(format!("one of {}", operation.object())),
            _ => Self::NotFound(format!("ipset {}", operation.name())),
        }
    }
}

/// For entries: an attribute that the type and family require is missing.
const IPSET_ERR_PROTOCOL: i32 = 4097;
const IPSET_ERR_FIND_TYPE: i32 = 4098;
const IPSET_ERR_MAX_SETS: i32 = 4099;
const IPSET_ERR_BUSY: i32 = 4100;
const IPSET_ERR_EXIST_SETNAME2: i32 = 4101;
const IPSET_ERR_TYPE_MISMATCH: i32 = 4102;
const IPSET_ERR_EXIST: i32 = 4103;
const IPSET_ERR_INVALID_CIDR: i32 = 4104;
const IPSET_ERR_INVALID_FAMILY: i32 = 4106;
const IPSET_ERR_REFERENCED: i32 = 4108;
const IPSET_ERR_IPADDR_IPV4: i32 = 4109;
const IPSET_ERR_IPADDR_IPV6: i32 = 4110;
/// For bitmaps: out of range.
const IPSET_ERR_HASH_FULL: i32 = 4352;
const IPSET_ERR_HASH_ELEM: i32 = 4353;
const IPSET_ERR_INVALID_PROTO: i32 = 4354;
const IPSET_ERR_MISSING_PROTO: i32 = 4355;

/// Maps the kernel's error for an operation.
pub(super) fn refusal(operation: &SetOperation, error: NetlinkError) -> IpSetError {
    use SetOperation::{Add, AddNew, Create, Delete};
    let object = || operation.object();
    let refused = |reason: String| IpSetError::Refused { object: object(), reason };
    let Some(errno) = error.errno() else { return IpSetError::Failed(error.into()) };
    match (errno, operation) {
        (libc::EPERM | libc::EACCES, _) => IpSetError::NotPermitted,
        (IPSET_ERR_FIND_TYPE, Create(set)) => {
            let kind = set.set_type.name();
            IpSetError::NoType { kind, module: format!("ip_set_{}", kind.replace(':', "_").replace(',', "")) }
        }
        (libc::EEXIST, _) => IpSetError::Exists(object()),
        (libc::ENOENT | IPSET_ERR_EXIST_SETNAME2, _) => IpSetError::no_set(operation),
        (IPSET_ERR_BUSY | IPSET_ERR_REFERENCED, _) => IpSetError::InUse(operation.name()),
        (IPSET_ERR_EXIST, Delete(..)) => IpSetError::NotFound(object()),
        (IPSET_ERR_EXIST, _) => IpSetError::Exists(object()),
        (IPSET_ERR_PROTOCOL, Add(..) | AddNew(..) | Delete(..)) => IpSetError::Mismatch(object()),
        (IPSET_ERR_TYPE_MISMATCH | IPSET_ERR_IPADDR_IPV4 | IPSET_ERR_IPADDR_IPV6 | IPSET_ERR_INVALID_FAMILY, _) => {
            IpSetError::Mismatch(object())
        }
        (IPSET_ERR_HASH_FULL, Add(name, entry) | AddNew(name, entry)) => {
            IpSetError::Full { name: *name, entry: entry.to_string() }
        }
        (IPSET_ERR_MAX_SETS, _) => {
            refused("the limit on sets is reached (parameter max_sets of module ip_set)".to_owned())
        }
        (IPSET_ERR_INVALID_CIDR, _) => refused("invalid prefix length".to_owned()),
        (IPSET_ERR_HASH_ELEM, _) => refused("the address is zero".to_owned()),
        (IPSET_ERR_INVALID_PROTO | IPSET_ERR_MISSING_PROTO, _) => refused("invalid protocol".to_owned()),
        (4097.., _) => refused(format!("ipset error {errno}")),
        _ => refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IpFamily;
    use crate::ipset::SetType;

    #[test]
    fn missing_set_type_error_names_its_module() {
        let set = |set_type| Set::new(SetName::new("A"), set_type, IpFamily::V4);
        for (set_type, module) in [
            (SetType::HashIpPort, "ip_set_hash_ipport"),
            (SetType::HashIpPortIp, "ip_set_hash_ipportip"),
            (SetType::HashIpPortNet, "ip_set_hash_ipportnet"),
            (SetType::HashIp, "ip_set_hash_ip"),
            (SetType::BitmapPort, "ip_set_bitmap_port"),
        ] {
            let error = NetlinkError::Refused { errno: IPSET_ERR_FIND_TYPE, words: String::new(), shown: Vec::new() };
            let text = refusal(&SetOperation::Create(set(set_type)), error).to_string();
            assert!(text.contains(set_type.name()) && text.ends_with(&format!("(modprobe {module})")), "{text}");
        }
    }
}
