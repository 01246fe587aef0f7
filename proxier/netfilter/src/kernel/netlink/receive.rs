//! Decodes messages and attributes.
//!
//! Accepts any bytes: malformed input ends the iteration and never panics.

use super::{
    ALIGNMENT, ATTRIBUTE_HEADER, HEADER, NLA_TYPE_MASK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_ERROR, NetlinkError,
};

const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The payload after the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The attributes after a subsystem header of `header` bytes.
    pub fn attributes(&self, header: usize) -> Attributes<'a> {
        Attributes(self.payload.get(header..).unwrap_or_default())
    }

    /// The result in an acknowledgement; `None` for other messages.
    pub(super) fn verdict(&self) -> Option<Result<(), NetlinkError>> {
        (self.kind == NLMSG_ERROR).then(|| match number(self.payload, 0).map(u32::cast_signed) {
            Some(0) => Ok(()),
            Some(code) => {
                let shown = self.shown().to_vec();
                Err(NetlinkError::Refused { errno: code.saturating_neg(), words: self.words(), shown })
            }
            None => Err(NetlinkError::Malformed),
        })
    }

    /// The error code in `NLMSG_DONE`: a dump may end with an error.
    pub(super) fn end_code(&self) -> i32 {
        number(self.payload, 0).map_or(0, u32::cast_signed)
    }

    /// The part of the request in an acknowledgement, after its header.
    fn shown(&self) -> &'a [u8] {
        let length = number(self.payload, 4).map(to_usize).filter(|_| self.flags & NLM_F_CAPPED == 0);
        let end = length.and_then(|length| length.checked_add(4));
        end.and_then(|end| self.payload.get(4 + HEADER..end)).unwrap_or_default()
    }

    /// The kernel's error message.
    fn words(&self) -> String {
        let text = self.about_error().and_then(|about| about.find(NLMSGERR_ATTR_MSG)).unwrap_or_default();
        String::from_utf8_lossy(text).trim_end_matches('\0').escape_debug().to_string()
    }

    /// The offset in the request of the offending attribute.
    pub(super) fn error_offset(&self) -> Option<usize> {
        self.about_error()?.find_array(NLMSGERR_ATTR_OFFS).map(|offset| to_usize(u32::from_ne_bytes(offset)))
    }

    /// The extended acknowledgement attributes, which follow the returned part of the request.
    fn about_error(&self) -> Option<Attributes<'a>> {
        let shown = if self.flags & NLM_F_CAPPED != 0 { Some(HEADER) } else { number(self.payload, 4).map(to_usize) };
        let after = shown.and_then(|shown| shown.checked_next_multiple_of(ALIGNMENT)?.checked_add(4));
        after.filter(|_| self.flags & NLM_F_ACK_TLVS != 0).map(|after| self.attributes(after))
    }
}

/// The messages of one datagram.
#[derive(Clone, Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Received<'a>, NetlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let received = self.take();
        if received.is_none() {
            self.0 = &[];
        }
        Some(received.ok_or(NetlinkError::Malformed))
    }
}

impl<'a> Messages<'a> {
    fn take(&mut self) -> Option<Received<'a>> {
        let length = to_usize(number(self.0, 0)?);
        let kind_and_flags = self.0.get(4..8)?;
        let received = Received {
            kind: u16::from_ne_bytes([kind_and_flags[0], kind_and_flags[1]]),
            flags: u16::from_ne_bytes([kind_and_flags[2], kind_and_flags[3]]),
            sequence: number(self.0, 8)?,
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(received)
    }
}

/// An iterator over attributes, which ends at malformed input.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The value of the first attribute of a type.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The value of the first attribute of a type, if it has exactly `N` bytes.
    pub fn find_array<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.find(kind)?.try_into().ok()
    }

    /// A number in network byte order, of two bytes.
    pub fn be16(self, kind: u16) -> Option<u16> {
        self.find_array(kind).map(u16::from_be_bytes)
    }

    /// A number in network byte order, of four bytes.
    pub fn be32(self, kind: u16) -> Option<u32> {
        self.find_array(kind).map(u32::from_be_bytes)
    }

    /// A number in network byte order, of eight bytes.
    pub fn be64(self, kind: u16) -> Option<u64> {
        self.find_array(kind).map(u64::from_be_bytes)
    }

    /// A number in host byte order, of four bytes.
    pub fn ne32(self, kind: u16) -> Option<u32> {
        self.find_array(kind).map(u32::from_ne_bytes)
    }

    /// A NUL-terminated string.
    pub fn text(self, kind: u16) -> Option<&'a str> {
        self.find(kind).and_then(text)
    }

    /// The nested attributes in the first attribute of a type.
    pub fn nest(self, kind: u16) -> Option<Self> {
        self.find(kind).map(Self)
    }
}

impl<'a> Iterator for Attributes<'a> {
    /// The type without flags, and the value.
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..ATTRIBUTE_HEADER)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Decodes a NUL-terminated string.
pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches('\0'))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?))
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).expect("small");
        let mut bytes = [length.to_ne_bytes(), [0; 4], 7_u32.to_ne_bytes(), [0; 4]].concat();
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(payload);
        bytes
    }

    fn verdict(bytes: &[u8]) -> Result<(), NetlinkError> {
        Messages(bytes).next().expect("a message")?.verdict().expect("a verdict")
    }

    #[test]
    fn acknowledgement_is_decoded_or_malformed() {
        assert!(verdict(&message(NLMSG_ERROR, 0, &[0; 20])).is_ok());
        let refusal = message(NLMSG_ERROR, 0, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(verdict(&refusal).expect_err("refused").errno(), Some(libc::EPERM));
        assert!(matches!(verdict(&refusal[..18]), Err(NetlinkError::Malformed)));
        assert!(matches!(verdict(&message(NLMSG_ERROR, 0, &[1, 2])), Err(NetlinkError::Malformed)));
        assert!(Messages(&message(3, 0, &[])).next().expect("a message").expect("whole").verdict().is_none());
    }

    #[test]
    fn extended_acknowledgement_message_follows_the_request() {
        let words = [&17_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"no such zone\0\0\0\0"].concat();
        let code = (-libc::EINVAL).to_ne_bytes();
        // The whole request is returned: a header and five bytes, padded.
        let whole = [&code[..], &21_u32.to_ne_bytes(), &[0; 20], &words].concat();
        let capped = [&code[..], &999_u32.to_ne_bytes(), &[0; 12], &words].concat();
        for (flags, payload) in [(NLM_F_ACK_TLVS, &whole), (NLM_F_ACK_TLVS | NLM_F_CAPPED, &capped)] {
            let error = verdict(&message(NLMSG_ERROR, flags, payload)).expect_err("refused");
            assert_eq!(error.to_string(), "Invalid argument (os error 22): no such zone");
        }
        let error = verdict(&message(NLMSG_ERROR, 0, &whole)).expect_err("refused");
        assert_eq!(error.to_string(), "Invalid argument (os error 22)");
    }

    #[test]
    fn returned_part_of_the_request_is_kept() {
        let payload = [&(-libc::EINVAL).to_ne_bytes()[..], &21_u32.to_ne_bytes(), &[0; 12], b"abcde\0\0\0"].concat();
        for (flags, kept) in [(0, &b"abcde"[..]), (NLM_F_CAPPED, b"")] {
            let error = verdict(&message(NLMSG_ERROR, flags, &payload)).expect_err("refused");
            assert!(matches!(error, NetlinkError::Refused { shown, .. } if shown == kept));
        }
    }

    #[test]
    fn datagram_with_several_messages_is_split() {
        let datagram = [message(1, 0, b"abc\0"), message(2, 0, b"")].concat();
        let kinds: Vec<u16> = Messages(&datagram).map(|m| m.expect("whole").kind).collect();
        assert_eq!(kinds, [1, 2]);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.len();
            for message in Messages(&bytes).flatten() {
                rest -= HEADER;
                prop_assert!(message.payload.len() <= rest);
                let _ = (message.verdict(), message.end_code(), message.attributes(4).count());
            }
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / ATTRIBUTE_HEADER);
        }

        #[test]
        fn truncated_datagram_yields_an_error(cut in 0_usize..60) {
            let datagram = [message(1, 0, &[8, 0, 1, 0, 1, 2, 3, 4]), message(NLMSG_ERROR, NLM_F_ACK_TLVS, &[255; 20])];
            let datagram = datagram.concat();
            let bytes = &datagram[..cut.min(datagram.len())];
            let whole = Messages(bytes).flatten().count();
            let ends = [0, 24, 60];
            prop_assert_eq!(Messages(bytes).any(|m| m.is_err()), !ends.contains(&bytes.len()));
            prop_assert_eq!(whole, ends.iter().filter(|end| **end > 0 && **end <= bytes.len()).count());
        }
    }
}
