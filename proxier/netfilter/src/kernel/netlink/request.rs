//! Encodes messages, attribute by attribute, with correct lengths and alignment.

use super::{ALIGNMENT, ATTRIBUTE_HEADER, Attributes, HEADER, NLA_F_NESTED, NLM_F_REQUEST, NetlinkError};

/// A message under construction.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
    /// Whether an attribute exceeded its length field, so that the message must not be sent.
    too_long: bool,
}

impl Request {
    /// A message without attributes. `header` is the header of the subsystem.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence number and port ID.
        bytes.extend([0; 8]);
        bytes.extend(header);
        let mut request = Self { bytes, too_long: false };
        request.pad();
        request
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend(value);
        self.close(start)
    }

    /// Appends a NUL-terminated string.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend(value.as_bytes());
        self.bytes.push(0);
        self.close(start)
    }

    /// Appends an attribute that contains the attributes that `fill` appends.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.open(kind | NLA_F_NESTED);
        fill(self);
        self.close(start)
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    /// Sets the length of an attribute, without the padding that follows.
    fn close(&mut self, start: usize) -> &mut Self {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or_else(|_| {
            self.too_long = true;
            u16::try_from(ATTRIBUTE_HEADER).unwrap_or(u16::MAX)
        });
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// The index of the nested item at an offset of the message. `header` is the size of the subsystem header.
    pub fn item_at(&self, header: usize, nest: u16, offset: usize) -> Option<usize> {
        let mut at = HEADER + header;
        let mut attributes = Attributes::new(self.bytes.get(at..)?);
        let items = attributes.find_map(|(kind, value)| {
            let start = at + ATTRIBUTE_HEADER;
            at = (start + value.len()).next_multiple_of(ALIGNMENT);
            (kind == nest).then_some((start, value))
        });
        let (mut start, items) = items?;
        Attributes::new(items).position(|(_, value)| {
            let end = (start + ATTRIBUTE_HEADER + value.len()).next_multiple_of(ALIGNMENT);
            (std::mem::replace(&mut start, end)..end).contains(&offset)
        })
    }

    /// Appends the message to `out`, with its sequence number and additional flags.
    pub(super) fn write_to(&self, out: &mut Vec<u8>, sequence: u32, flags: u16) -> Result<(), NetlinkError> {
        let length = u32::try_from(self.bytes.len()).map_err(|_| NetlinkError::TooLong)?;
        if self.too_long {
            return Err(NetlinkError::TooLong);
        }
        let start = out.len();
        out.extend(&self.bytes);
        out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        number(&mut out[start..], sequence, flags);
        Ok(())
    }

    /// The attributes of a message without subsystem header, as the kernel would send them to a test.
    #[cfg(any(test, feature = "testing"))]
    pub fn into_attributes(mut self) -> Vec<u8> {
        self.bytes.split_off(HEADER)
    }
}

/// Sets the sequence number and additional flags of an encoded message.
pub(super) fn number(message: &mut [u8], sequence: u32, flags: u16) {
    let flags = flags | u16::from_ne_bytes([message[6], message[7]]);
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::NLM_F_ACK;
    use super::*;

    fn finished(request: &Request) -> Vec<u8> {
        let mut bytes = Vec::new();
        request.write_to(&mut bytes, 7, NLM_F_ACK).expect("not too long");
        bytes
    }

    #[test]
    fn message_contains_its_length_and_sequence_number() {
        let mut request = Request::new(0x0102, 0x400, &[2, 0, 0, 0]);
        let bytes = finished(request.text(1, "abc").attribute(2, &[9]));
        assert_eq!(bytes.len(), HEADER + 4 + 8 + 8);
        assert_eq!(bytes[..4], 36_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 0x0102_u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 0x405_u16.to_ne_bytes());
        assert_eq!(bytes[8..12], 7_u32.to_ne_bytes());
        assert_eq!(bytes[20..28], *[&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"abc\0"].concat());
        assert_eq!(bytes[28..36], *[&5_u16.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &[9, 0, 0, 0]].concat());
    }

    #[test]
    fn nested_attributes_round_trip() {
        let mut request = Request::new(1, 0, &[]);
        request.nested(1, |outer| {
            outer.attribute(1, &[1]).nested(2, |inner| {
                inner.attribute(3, b"xy");
            });
        });
        let bytes = finished(&request);
        let outer = Attributes::new(&bytes[HEADER..]).find(1).expect("the outer one");
        let inner = Attributes::new(outer).find(2).expect("the inner one");
        assert_eq!(Attributes::new(inner).find(3), Some(&b"xy"[..]));
    }

    #[test]
    fn nested_item_is_found_by_offset() {
        let mut request = Request::new(1, 0, &[2, 0, 0, 0]);
        request.text(1, "abcd").nested(3, |items| {
            items.attribute(1, &[1; 4]).attribute(1, &[2; 5]).attribute(1, &[3; 4]);
        });
        // Headers of 16 and 4 bytes, a string of 12, a nest header of 4, then items of 8, 12 and 8 bytes.
        for (offset, item) in [(35, None), (36, Some(0)), (44, Some(1)), (55, Some(1)), (56, Some(2)), (64, None)] {
            assert_eq!(request.item_at(4, 3, offset), item, "at {offset}");
        }
        assert_eq!(request.item_at(4, 2, 36), None);
    }

    #[test]
    fn oversized_attribute_is_rejected() {
        let mut request = Request::new(1, 0, &[]);
        request.attribute(1, &vec![0; 0xffff]);
        assert!(matches!(request.write_to(&mut Vec::new(), 1, 0), Err(NetlinkError::TooLong)));
        let mut request = Request::new(1, 0, &[]);
        request.attribute(1, &vec![0; 0xffff - ATTRIBUTE_HEADER]);
        assert!(request.write_to(&mut Vec::new(), 1, 0).is_ok());
    }
}
