//! Generic netlink: subsystems that have a name instead of a number.
//!
//! In: a name. Out: the number that the running kernel gave it. Must not know: what the subsystem does.

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

/// The kind of the messages of a subsystem; `None` if this kernel has none of that name.
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
    fn the_controller_knows_itself_and_says_what_is_not_there() {
        let mut socket = Netlink::open(netlink_sys::protocols::NETLINK_GENERIC).expect("generic netlink");
        assert_eq!(family(&mut socket, "nlctrl").expect("an answer"), Some(GENL_ID_CTRL));
        assert_eq!(family(&mut socket, "no-such-thing").expect("an answer"), None);
    }
}
