//! What could not be read.

use serde::Serialize;

/// Something that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What is noted where rules cannot be compared.
pub const COMPARISON: &str = "comparison with what should be";

impl Unread {
    /// Whether packets depend on it, so that without it the node cannot be called healthy.
    #[must_use]
    pub fn is_of_rules(&self) -> bool {
        let words = ["rule", "table", "set", "servers"];
        self.what == COMPARISON || words.iter().any(|word| self.what.contains(word))
    }

    /// A note.
    pub fn new(what: &str, why: impl Into<String>) -> Self {
        Self { what: what.to_owned(), why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::{COMPARISON, Unread};

    #[test]
    fn unread_parts_that_decide_over_packets_are_distinguished() {
        let is_of_rules = |what: &str| Unread::new(what, "why").is_of_rules();
        let decide =
            ["rules of IPv4", "tables of nf_tables", "set a of table ip kube-proxy", "virtual servers", COMPARISON];
        assert!(decide.into_iter().all(is_of_rules));
        assert!(!["objects", "flows", "names of Services"].into_iter().any(is_of_rules));
    }
}
