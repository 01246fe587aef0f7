//! A unified diff of two texts, with one line of context.

use std::time::Duration;

use similar::{ChangeTag, TextDiff};

/// How long the smallest diff is searched for; then a larger one has to do.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The diff, at most `limit` lines; empty for equal texts.
#[must_use]
pub fn unified(expected: &str, actual: &str, limit: usize) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let diff = TextDiff::configure().timeout(TIMEOUT).diff_slices(&a, &b);
    let mut out = Vec::new();
    for group in diff.grouped_ops(1) {
        if !out.is_empty() {
            out.push("@@".to_owned());
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let mark = match change.tag() {
                ChangeTag::Equal => ' ',
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
            };
            out.push(format!("{mark}{}", change.value()));
        }
    }
    let left = out.len().saturating_sub(limit);
    out.truncate(limit);
    if left > 0 {
        out.push(format!("… {left} more lines"));
    }
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_have_no_difference() {
        assert_eq!(unified("a\nb\n", "a\nb\n", 10), "");
    }

    #[test]
    fn shows_changes_with_their_neighbours() {
        assert_eq!(unified("a\nb\nc\nd\ne\nf\ng\n", "a\nB\nc\nd\ne\ng\n", 20), " a\n-b\n+B\n c\n@@\n e\n-f\n g");
    }

    #[test]
    fn is_cut_at_the_limit() {
        assert_eq!(unified("a\nb\nc\n", "", 2), "-a\n-b\n… 1 more lines");
    }
}
