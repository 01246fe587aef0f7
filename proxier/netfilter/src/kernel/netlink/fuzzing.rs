//! Netlink framing as entry points for fuzz targets.

use super::batch::collect;
use super::receive::{Messages, Received};
use super::responses::Responses;
use super::{Attributes, HEADER, NetlinkError, Request, generic, multicast};

/// Passes the messages of a datagram to `each`, up to the first malformed one.
pub(in crate::kernel) fn each(datagram: &[u8], each: &mut dyn FnMut(&Received<'_>)) {
    Messages(datagram).map_while(Result::ok).for_each(|received| each(&received));
}

/// Decodes a datagram as an answer, a dump, the answer to a batch, and as notifications.
///
/// # Panics
/// If attributes differ after encoding them again, or one datagram for each message yields another result than all
/// messages in one.
pub(in crate::kernel) fn framing(datagram: &[u8]) {
    let first = datagram.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    for until_acknowledged in [true, false] {
        let (whole, one_by_one) = (answers(&[datagram], first, until_acknowledged), cut(datagram));
        assert_eq!(whole, answers(&one_by_one, first, until_acknowledged));
    }
    let mut faults = Vec::new();
    let _ = collect(datagram, (first, 8, 7), &mut faults, &mut |_, _| ());
    assert!(faults.len() <= datagram.len() / HEADER, "more faults than messages");
    let _ = faults.iter().map(|fault| format!("{} {:?}", fault.error, fault.error.errno())).count();
    let mut notices = 0;
    let _ = multicast::hand_over(datagram, &mut |received| {
        notices += 1;
        let _ = generic::number(received);
        for header in [0, 4, 8, 16] {
            written_again(received.attributes(header));
        }
    });
    assert!(notices <= datagram.len() / HEADER, "more notifications than fit");
}

/// The decoded messages and the final result, as text.
fn answers(datagrams: &[&[u8]], sequence: u32, until_acknowledged: bool) -> String {
    let (mut answers, mut text) = (Responses::new(sequence, until_acknowledged), String::new());
    for datagram in datagrams {
        let taken = answers.take(datagram, &mut |received| -> Result<(), NetlinkError> {
            text.push_str(&format!("{} {:?}\n", received.kind, received.payload));
            Ok(())
        });
        match taken {
            Ok(None) => {}
            ended => return format!("{text}{ended:?}"),
        }
    }
    text
}

/// Splits a datagram into its messages and the malformed rest.
fn cut(datagram: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut messages) = (Vec::new(), Messages(datagram));
    loop {
        let before = messages.0;
        match messages.next() {
            Some(Ok(_)) => parts.push(&before[..before.len() - messages.0.len()]),
            Some(Err(_)) => parts.push(before),
            None => return parts,
        }
    }
}

fn written_again(attributes: Attributes<'_>) {
    let mut request = Request::new(0, 0, &[]);
    for (kind, value) in attributes {
        request.attribute(kind, value);
    }
    let bytes = request.into_attributes();
    assert!(Attributes::new(&bytes).eq(attributes), "attributes differ when they are written again");
}
