//! Generic netlink, where families are identified by name.

use super::{Netlink, NetlinkError, Received, Request};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const VERSION: u8 = 1;

/// `struct genlmsghdr`: command, version, reserved.
pub fn header(command: u8) -> [u8; 4] {
    [command, VERSION, 0, 0]
}

/// The message type of a family; `None` if the kernel does not have the family.
pub fn family(socket: &mut Netlink, name: &str) -> Result<Option<u16>, NetlinkError> {
    let mut request = Request::new(GENL_ID_CTRL, 0, &header(CTRL_CMD_GETFAMILY));
    request.text(CTRL_ATTR_FAMILY_NAME, name);
    let mut id = None;
    let outcome = socket.query(&request, &mut |received| {
        id = number(received);
        Ok(())
    });
    match outcome {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        outcome => outcome.and_then(|()| id.map(Some).ok_or(NetlinkError::Malformed)),
    }
}

pub(super) fn number(received: &Received<'_>) -> Option<u16> {
    let attributes = received.attributes(header(0).len());
    attributes.find_array(CTRL_ATTR_FAMILY_ID).map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_netlink_controller_is_found_and_unknown_family_is_none() {
        let mut socket = Netlink::open(netlink_sys::protocols::NETLINK_GENERIC).expect("generic netlink");
        assert_eq!(family(&mut socket, "nlctrl").expect("an answer"), Some(GENL_ID_CTRL));
        assert_eq!(family(&mut socket, "no-such-thing").expect("an answer"), None);
    }
}
