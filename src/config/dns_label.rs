//! DNS labels (RFC 1123), which the API accepts as names of Namespaces.

/// What a label may be, for messages.
pub const LABEL: &str = "must be 1 to 63 lowercase letters, digits or '-', with a letter or digit at both ends";

/// Whether a text is a DNS label, as the names of Namespaces are.
#[must_use]
pub fn is_label(name: &str) -> bool {
    let is_end = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    let has_ends = ends.into_iter().all(|end| end.is_some_and(is_end));
    name.len() <= 63 && has_ends && bytes.iter().all(|c| is_end(c) || *c == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_api_accepts_are_accepted_and_no_others() {
        let long = "a".repeat(63);
        for name in ["a", "0", "web-1", &long] {
            assert!(is_label(name), "{name}");
        }
        for name in ["", "-a", "a-", "Web", "a_b", "a b", "a\nb", "ä", "a.b"] {
            assert!(!is_label(name), "{name}");
        }
        assert!(!is_label(&"a".repeat(64)));
    }
}
