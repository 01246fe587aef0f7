//! Names and indexes of ipsets: rules contain the index, texts the name.

use std::collections::HashMap;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::kernel::netlink::{
    NFGENMSG_LENGTH, NLA_F_NET_BYTEORDER, Netlink, NetlinkError, Request, nfgenmsg, nfnetlink,
};

const NFNL_SUBSYS_IPSET: u8 = 6;
const IPSET_CMD_GET_BYNAME: u8 = 14;
const IPSET_CMD_GET_BYINDEX: u8 = 15;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_INDEX: u16 = 11;
/// The protocol version that has both commands (Linux 4.20 and later).
const IPSET_PROTOCOL: u8 = 7;

/// The sets of the calling thread's network namespace, looked up one by one and kept until [`SetIndex::forget`].
#[derive(Debug, Default)]
pub(super) struct SetIndex {
    known: HashMap<String, u16>,
}

impl SetIndex {
    /// Sets that are known without a kernel.
    #[cfg(test)]
    pub fn of(sets: &[(&str, u16)]) -> Self {
        Self { known: sets.iter().map(|(name, index)| ((*name).to_owned(), *index)).collect() }
    }

    /// Forgets what was looked up: sets may be renamed, swapped and made anew.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// The index of a set; `None` if it does not exist.
    ///
    /// # Errors
    /// If the kernel does not answer, as without ipset.
    pub fn index(&mut self, name: &str) -> Result<Option<u16>, NetlinkError> {
        if let Some(index) = self.known.get(name) {
            return Ok(Some(*index));
        }
        let mut request = request(IPSET_CMD_GET_BYNAME);
        request.text(IPSET_ATTR_SETNAME, name);
        let mut found = None;
        answer(&request, |attributes| found = attributes.be16(IPSET_ATTR_INDEX))?;
        self.known.extend(found.map(|index| (name.to_owned(), index)));
        Ok(found)
    }

    /// The name of a set; `None` if it does not exist.
    ///
    /// # Errors
    /// If the kernel does not answer, as without ipset.
    pub fn name(&mut self, index: u16) -> Result<Option<String>, NetlinkError> {
        if let Some((name, _)) = self.known.iter().find(|(_, known)| **known == index) {
            return Ok(Some(name.clone()));
        }
        let mut request = request(IPSET_CMD_GET_BYINDEX);
        request.attribute(IPSET_ATTR_INDEX | NLA_F_NET_BYTEORDER, &index.to_be_bytes());
        let mut found = None;
        answer(&request, |attributes| found = attributes.text(IPSET_ATTR_SETNAME).map(str::to_owned))?;
        self.known.extend(found.clone().map(|name| (name, index)));
        Ok(found)
    }
}

fn request(command: u8) -> Request {
    // The family is of no importance: names are unique over both.
    let mut request = Request::new(nfnetlink(NFNL_SUBSYS_IPSET, command), 0, &nfgenmsg(2));
    request.attribute(IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
    request
}

/// Passes the answer's attributes to `each`. A set that does not exist has no answer.
fn answer(request: &Request, mut each: impl FnMut(crate::kernel::netlink::Attributes<'_>)) -> Result<(), NetlinkError> {
    let answer = Netlink::open(NETLINK_NETFILTER)?.query(request, &mut |received| {
        each(received.attributes(NFGENMSG_LENGTH));
        Ok(())
    });
    match answer {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        answer => answer,
    }
}
