//! `--vmodule`: the level of single files.
//!
//! In: patterns, and the file that a line is from. Out: its level, if a pattern has it. Must not know: what is logged.
//! A pattern without a slash is held against the name of the file without `.rs`, one with a slash against the end of
//! its path; `mod` files have the name of their folder, as Rust's people think of them.

use crate::config::logging::VmoduleItem;

/// The level of the first pattern that matches.
pub fn level(items: &[VmoduleItem], file: Option<&str>) -> Option<u32> {
    let path = file?.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    items.iter().find(|item| matches(&item.file_pattern, path)).map(|item| item.verbosity)
}

fn matches(pattern: &str, path: &str) -> bool {
    let parts = pattern.split('/').count();
    let start = path.rmatch_indices('/').nth(parts - 1).map_or(0, |(at, _)| at + 1);
    fits(pattern.as_bytes(), &path.as_bytes()[start..])
}

/// `*` stands for anything, `?` for one sign.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skipped| fits(rest, &text[skipped..])),
        (Some((b'?', pattern)), Some((_, text))) => fits(pattern, text),
        (Some((a, pattern)), Some((b, text))) => a == b && fits(pattern, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_fits_a_file_counts() {
        let items = [("api*", 5), ("source/objects", 3), ("?un", 2), ("source", 4), ("*", 1)];
        let items = items.map(|(pattern, verbosity)| VmoduleItem { file_pattern: pattern.to_owned(), verbosity });
        for (file, expected) in [
            ("src/source/api.rs", 5),
            ("src/source/objects.rs", 3),
            ("src/track/objects.rs", 1),
            ("src/run.rs", 2),
            ("src/source/mod.rs", 4),
            ("proxier/src/proxier.rs", 1),
        ] {
            assert_eq!(level(&items, Some(file)), Some(expected), "{file}");
        }
        assert_eq!(level(&items[..4], Some("src/health.rs")), None);
        assert_eq!(level(&items, None), None);
    }
}
