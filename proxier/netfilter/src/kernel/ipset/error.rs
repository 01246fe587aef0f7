//! What can go wrong with ipsets.
//!
//! In: what was tried, and the kernel's error number. Out: the object, the reason and the operator's next step.
//! Must not know: why it was tried.

use std::io;

use thiserror::Error;

use super::super::netlink::NetlinkError;
use super::{SetOperation, described};
use crate::ipset::{ObservedSet, Set, SetName};

/// Why something was not done to a set, or not read from it.
#[derive(Debug, Error)]
pub enum IpSetError {
    /// The kernel has no ipsets.
    #[error(
        "this kernel has no ipset: load module ip_set (modprobe ip_set), or boot a kernel built with CONFIG_IP_SET, or \
         choose another mode than ipvs"
    )]
    Missing,
    /// The kernel does not have this type of set.
    #[error("this kernel has no ipset type {kind}: load module {module} (modprobe {module})")]
    NoType {
        /// The type.
        kind: &'static str,
        /// Its module.
        module: String,
    },
    /// We may not.
    #[error("ipsets may be changed and read only with CAP_NET_ADMIN in the host's network namespace: run privileged")]
    NotPermitted,
    /// There is another one of that name.
    #[error(
        "ipset {name} exists with another type: it is {found}, wanted is {wanted}; see what uses it (ipset list {name}; iptables-save) and destroy it"
    )]
    Clash {
        /// The name.
        name: SetName,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// It is there already.
    #[error("{0}: exists already")]
    Exists(String),
    /// It is not there.
    #[error("{0}: does not exist")]
    NotFound(String),
    /// Rules or other sets refer to it.
    #[error("ipset {0} is in use: rules that name it (iptables-save | grep {0}) have to go first")]
    InUse(SetName),
    /// It takes no more.
    #[error("{entry}: ipset {name} is full")]
    Full {
        /// The set.
        name: SetName,
        /// What it has no room for.
        entry: String,
    },
    /// The entry or the other set is of another type or family than the set.
    #[error("{0}: of another type or family than the set")]
    Mismatch(String),
    /// The kernel refuses it for another reason.
    #[error("{object}: {reason}")]
    Refused {
        /// What was to be changed.
        object: String,
        /// The kernel's reason.
        reason: String,
    },
    /// The kernel could not be talked to.
    #[error("cannot talk to ipset: {0}")]
    Failed(#[from] io::Error),
}

impl SetOperation {
    /// What a message calls it.
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
    /// A set is in the way.
    pub(crate) fn clash(wanted: &Set, found: &ObservedSet) -> Self {
        let (found, wanted_words) = (found.described.clone(), described(wanted));
        Self::Clash { name: wanted.name, found, wanted: wanted_words }
    }

    /// A set's entries are of a type that is none of ours.
    pub(crate) fn foreign(name: SetName, found: &str) -> Self {
        Self::Refused { object: format!("ipset {name}"), reason: format!("its type is {found}, none of ours") }
    }

    /// The set that an operation is about is not there.
    pub(crate) fn no_set(operation: &SetOperation) -> Self {
        match operation {
            SetOperation::Swap(..) => Self::NotFound(format!("one of {}", operation.object())),
            _ => Self::NotFound(format!("ipset {}", operation.name())),
        }
    }
}

/// Of entries: they lack what this type and family needs.
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
/// Of bitmaps, out of range.
const IPSET_ERR_HASH_FULL: i32 = 4352;
const IPSET_ERR_HASH_ELEM: i32 = 4353;
const IPSET_ERR_INVALID_PROTO: i32 = 4354;
const IPSET_ERR_MISSING_PROTO: i32 = 4355;

/// What the kernel's refusal of an operation means.
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
            refused("the kernel has as many sets as it can (max_sets of module ip_set)".to_owned())
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
    fn the_module_of_a_type_is_named() {
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
