//! The names that the Kubernetes API accepts (RFC 1123).

/// What a label may be, for messages.
pub const LABEL: &str = "must be 1 to 63 lowercase letters, digits or '-', with a letter or digit at both ends";

/// What a subdomain may be, for messages.
pub const SUBDOMAIN: &str =
    "must be 1 to 253 lowercase letters, digits, '-' or '.', with a letter or digit at both ends of each part";

/// Whether a text is a DNS label, as the names of Namespaces and Services are.
///
/// Since Kubernetes 1.37 names of Services may begin with a digit.
#[must_use]
pub fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_part(name)
}

/// Whether a text is a DNS subdomain, as the names of most objects are.
#[must_use]
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let is_end = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.into_iter().all(|end| end.is_some_and(is_end)) && bytes.iter().all(|c| is_end(c) || *c == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_api_accepts_are_accepted_and_no_others() {
        let long = "a".repeat(63);
        for name in ["a", "0", "web-1", &long] {
            assert!(is_label(name) && is_subdomain(name), "{name}");
        }
        for name in ["", "-a", "a-", "Web", "a_b", "a b", "a\nb", "ä", "a.b"] {
            assert!(!is_label(name), "{name}");
        }
        assert!(!is_label(&"a".repeat(64)) && !is_subdomain(&format!("{}a", "a.".repeat(127))));
        assert!(is_subdomain("node-1.example.com") && !is_subdomain("a..b") && !is_subdomain(".a"));
    }
}
