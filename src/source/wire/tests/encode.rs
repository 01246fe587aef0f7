//! A writer of protobuf as an API server sends it.

/// Appends an unsigned number in base 128.
fn base128(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends an integer or a boolean; negative numbers take ten bytes.
pub fn varint(out: &mut Vec<u8>, number: u32, value: i64) {
    base128(out, u64::from(number) << 3);
    base128(out, value.cast_unsigned());
}

/// Appends a length-delimited field.
pub fn bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    base128(out, u64::from(number) << 3 | 2);
    base128(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends a string.
pub fn text(out: &mut Vec<u8>, number: u32, value: &str) {
    bytes(out, number, value.as_bytes());
}

/// Appends a message.
pub fn message(out: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(out, number, &inner);
}

/// A message in `runtime.Unknown`, behind the magic number.
pub fn envelope(api_version: &str, kind: &str, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = b"k8s\0".to_vec();
    message(&mut out, 1, |type_meta| {
        text(type_meta, 1, api_version);
        text(type_meta, 2, kind);
    });
    message(&mut out, 2, fill);
    text(&mut out, 3, "");
    text(&mut out, 4, "");
    out
}

/// A `metav1.WatchEvent` behind its length.
pub fn frame(name: &str, object: &[u8]) -> Vec<u8> {
    let mut event = Vec::new();
    text(&mut event, 1, name);
    message(&mut event, 2, |raw| bytes(raw, 1, object));
    let length = u32::try_from(event.len()).expect("a small event");
    [&length.to_be_bytes()[..], &event].concat()
}
