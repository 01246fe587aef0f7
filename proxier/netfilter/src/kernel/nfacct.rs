//! nfacct counters: named packet counters that rules refer to, over nfnetlink.

use std::collections::BTreeMap;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{Attributes, NLM_F_CREATE, Netlink, Request, nfgenmsg, nfnetlink};

const NFNL_SUBSYS_ACCT: u8 = 7;
const NFNL_MSG_ACCT_NEW: u8 = 0;
const NFNL_MSG_ACCT_GET: u8 = 1;
const NFACCT_NAME: u16 = 1;
const NFACCT_PKTS: u16 = 2;

/// Creates a counter unless it exists.
pub(super) fn ensure(name: &str) -> io::Result<()> {
    let mut request = Request::new(nfnetlink(NFNL_SUBSYS_ACCT, NFNL_MSG_ACCT_NEW), NLM_F_CREATE, &nfgenmsg(0));
    request.text(NFACCT_NAME, name);
    match Netlink::open(NETLINK_NETFILTER)?.request(&request) {
        // The kernel returns EBUSY for an existing counter.
        Err(error) if matches!(error.errno(), Some(libc::EBUSY | libc::EEXIST)) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The packet counts of all counters, by name.
///
/// # Errors
/// If the kernel has no nfacct or refuses permission.
pub fn packet_counters() -> io::Result<BTreeMap<String, u64>> {
    let mut counters = BTreeMap::new();
    let request = Request::new(nfnetlink(NFNL_SUBSYS_ACCT, NFNL_MSG_ACCT_GET), 0, &nfgenmsg(0));
    Netlink::open(NETLINK_NETFILTER)?.dump(&request, &mut |received| {
        counters.extend(counter(received.attributes(nfgenmsg(0).len())));
        Ok(())
    })?;
    Ok(counters)
}

pub(super) fn counter(attributes: Attributes<'_>) -> Option<(String, u64)> {
    let name = String::from_utf8_lossy(attributes.find(NFACCT_NAME)?).trim_end_matches('\0').to_owned();
    Some((name, attributes.be64(NFACCT_PKTS)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nfacct_counter_is_decoded() {
        let attributes = [&[8, 0, 1, 0][..], b"abc\0", &[12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]].concat();
        let little = cfg!(target_endian = "little");
        assert!(!little || counter(Attributes::new(&attributes)) == Some(("abc".to_owned(), 258)));
        assert_eq!(counter(Attributes::new(&attributes[..8])), None);
    }
}
