//! `--vmodule`: the log level of single files.
//!
//! A pattern without a slash matches the file name without `.rs`, one with a slash the end of the path. `mod.rs` has
//! the name
//! of its folder.

use crate::config::logging::VmoduleItem;

/// The level of the first matching pattern.
pub fn level(items: &[VmoduleItem], file: Option<&str>) -> Option<u32> {
    let path = file?.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    items.iter().find(|item| matches(&item.file_pattern, path)).map(|item| item.verbosity)
}

fn matches(pattern: &str, path: &str) -> bool {
    let parts = pattern.split('/').count();
    let start = path.rmatch_indices('/').nth(parts - 1).map_or(0, |(at, _)| at + 1);
    glob_match(pattern.as_bytes(), &path.as_bytes()[start..])
}

/// Matches `*` with anything and `?` with one character. Only the last `*` is backtracked: it can match all that an
/// earlier one could.
fn glob_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                p += 1;
                star = Some((p, t));
            }
            (Some(sign), _) if *sign == b'?' || *sign == text[t] => (p, t) = (p + 1, t + 1),
            (_, Some((after, from))) => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|sign| *sign == b'*')
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

    #[test]
    fn stars_stand_for_anything_and_many_of_them_cost_little() {
        for (pattern, text, fit) in [
            ("", "", true),
            ("*", "", true),
            ("**", "run", true),
            ("r*n", "rn", true),
            ("r*n", "run_on", true),
            ("*s*s", "stops", true),
            ("*s*s?", "stops", false),
            ("?*", "", false),
            ("run", "runs", false),
            ("runs", "run", false),
        ] {
            assert_eq!(glob_match(pattern.as_bytes(), text.as_bytes()), fit, "{pattern} {text}");
        }
        let (pattern, text) = ("*a".repeat(40) + "b", "a".repeat(80));
        assert!(!glob_match(pattern.as_bytes(), text.as_bytes()));
    }
}
