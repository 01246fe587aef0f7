//! nfacct: named packet counters that rules can refer to, over nfnetlink.
//!
//! In: a counter's name. Out: the kernel has it. Must not know: which rules count.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{NLM_F_CREATE, Netlink, Request, nfgenmsg, nfnetlink};

const NFNL_SUBSYS_ACCT: u8 = 7;
const NFNL_MSG_ACCT_NEW: u8 = 0;
const NFACCT_NAME: u16 = 1;

/// Makes a counter, unless it exists.
pub(super) fn ensure(name: &str) -> io::Result<()> {
    let mut request = Request::new(nfnetlink(NFNL_SUBSYS_ACCT, NFNL_MSG_ACCT_NEW), NLM_F_CREATE, &nfgenmsg(0));
    request.text(NFACCT_NAME, name);
    match Netlink::open(NETLINK_NETFILTER)?.request(&request) {
        // It says busy for a counter that exists.
        Err(error) if matches!(error.errno(), Some(libc::EBUSY | libc::EEXIST)) => Ok(()),
        outcome => Ok(outcome?),
    }
}
