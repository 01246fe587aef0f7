//! Whether this node can run nftables mode, and what its kernel has counted so far.

use std::collections::BTreeMap;
use std::io;

use netfilter::IpFamily;
use netfilter::kernel::{SystemNftables, kernel_release, packet_counters};
use proxier::nftables::{self, FeatureError};

use super::Unread;

/// Whether the kernel can run nftables mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftablesSupport {
    /// Why it cannot, by family.
    pub lacking: BTreeMap<IpFamily, String>,
    /// Families for which it did not answer, and why.
    pub unread: Vec<Unread>,
}

impl NftablesSupport {
    /// Asks the kernel to validate a table for each family that it has; none is created.
    #[must_use]
    pub fn of_kernel() -> Self {
        let mut support = Self::default();
        for family in IpFamily::ALL.into_iter().filter(|family| family.available().is_ok()) {
            let checked = nftables::check_release(&kernel_release())
                .and_then(|()| nftables::check(&mut SystemNftables::default(), family));
            support.add(family, checked);
        }
        support
    }

    /// Adds the answer for a family. A refused or failed request says nothing about the kernel's features.
    fn add(&mut self, family: IpFamily, checked: Result<(), FeatureError>) {
        match checked {
            Ok(()) => {}
            Err(error @ (FeatureError::TooOld(_) | FeatureError::Missing(_))) => {
                self.lacking.insert(family, error.to_string());
            }
            Err(error @ (FeatureError::NotPermitted(_) | FeatureError::Kernel(_))) => {
                self.unread.push(Unread::new(
                    &format!("the kernel's support of nftables mode for {family}"),
                    error.to_string(),
                ));
            }
        }
    }
}

/// The packets that nfacct counters of iptables mode have counted, by name. A kernel without nfacct has none.
///
/// # Errors
/// Why they cannot be read.
pub fn nfacct_packets() -> Result<BTreeMap<String, u64>, Unread> {
    counted(packet_counters())
}

fn counted(read: io::Result<BTreeMap<String, u64>>) -> Result<BTreeMap<String, u64>, Unread> {
    match read {
        Err(error) if is_absent(&error) => Ok(BTreeMap::new()),
        read => read.map_err(|error| Unread::new("packets that nfacct counted", error.to_string())),
    }
}

/// Whether the kernel answered that it has no such netlink subsystem.
fn is_absent(error: &io::Error) -> bool {
    let no_subsystem = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported);
    no_subsystem || error.raw_os_error() == Some(libc::EPROTONOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netfilter::kernel::nftables::NftError;

    #[test]
    fn kernel_is_lacking_only_where_it_said_so() {
        let failed = || NftError::Netlink(io::Error::from_raw_os_error(libc::ENOBUFS));
        let mut support = NftablesSupport::default();
        support.add(IpFamily::V4, Err(FeatureError::NotPermitted(failed())));
        support.add(IpFamily::V6, Err(FeatureError::Kernel(failed())));
        assert_eq!((support.lacking.len(), support.unread.len()), (0, 2), "{support:?}");
        assert!(support.unread[0].what.ends_with("for IPv4") && support.unread[0].why.contains("CAP_NET_ADMIN"));
        let mut support = NftablesSupport::default();
        support.add(IpFamily::V4, Err(FeatureError::TooOld("5.4".to_owned())));
        support.add(IpFamily::V6, Err(FeatureError::Missing("maps".to_owned())));
        assert_eq!((support.lacking.len(), support.unread.len()), (2, 0), "{support:?}");
        support.add(IpFamily::V4, Ok(()));
        assert_eq!(support.lacking.len(), 2);
    }

    #[test]
    fn counters_are_unread_unless_the_kernel_has_none() {
        let failed = |errno| counted(Err(io::Error::from_raw_os_error(errno)));
        assert_eq!(failed(libc::EINVAL), Ok(BTreeMap::new()));
        let unread = failed(libc::EPERM).expect_err("it is unread");
        assert_eq!(unread.what, "packets that nfacct counted");
        assert!(unread.why.contains("not permitted"), "{unread:?}");
    }
}
