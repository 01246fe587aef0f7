//! nfacct: named packet counters that rules can refer to, over nfnetlink.
//!
//! In: a counter's name. Out: the kernel has it. Must not know: which rules count.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const NFNL_SUBSYS_ACCT: u16 = 7;
const NFNL_MSG_ACCT_NEW: u16 = 0;
const NFACCT_NAME: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const HEADER: usize = 16;

/// Makes a counter, unless it exists.
pub(super) fn ensure(name: &str) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&new_counter(name), 0)?;
    let mut reply = Vec::with_capacity(1024);
    socket.recv(&mut reply, 0)?;
    match errno(&reply).ok_or_else(|| io::Error::other("the kernel's answer about nfacct was cut off"))? {
        // It says busy for a counter that exists.
        0 | libc::EBUSY | libc::EEXIST => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn new_counter(name: &str) -> Vec<u8> {
    let attribute = 4 + name.len() + 1;
    let mut message = Vec::with_capacity(HEADER + 4 + attribute + 3);
    message.extend([0; 4]);
    message.extend((NFNL_SUBSYS_ACCT << 8 | NFNL_MSG_ACCT_NEW).to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE).to_ne_bytes());
    // Sequence number and port: one request, one answer.
    message.extend([0; 8]);
    // nfgenmsg: family, version, resource.
    message.extend([0; 4]);
    message.extend(u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(NFACCT_NAME.to_ne_bytes());
    message.extend(name.as_bytes());
    message.push(0);
    message.resize(message.len().next_multiple_of(4), 0);
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message
}

/// The error number of an acknowledgement, 0 for success; `None` if it is none.
fn errno(reply: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(reply.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(-code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood_or_refused() {
        let mut reply = vec![0; 20];
        reply[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(errno(&reply), Some(0));
        reply[16..].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(errno(&reply), Some(libc::EPERM));
        assert_eq!(errno(&reply[..17]), None);
        assert_eq!(errno(&[]), None);
    }

    #[test]
    fn a_message_says_its_own_length_and_ends_its_name() {
        let message = new_counter("abc");
        assert_eq!(message.len() % 4, 0);
        assert_eq!(message[..4], u32::try_from(message.len()).expect("small").to_ne_bytes());
        assert_eq!(message[20..28], *[&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes()[..], b"abc\0"].concat());
    }
}
