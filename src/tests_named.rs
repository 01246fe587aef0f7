//! Lists in golden/surface name tests: these have to be there.
//!
//! In: the words of a row. Out: a panic if one of them is no test. Must not know: what rows are about.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

/// Words of a row: names of tests, with blanks between; "different: why"; "open: why"; or one of `others`.
#[track_caller]
pub fn check_words(row: &str, words: &str, others: &[&str]) {
    assert!(!words.trim().is_empty(), "{row} says nothing");
    for mark in ["different: ", "open: "] {
        if let Some(why) = words.strip_prefix(mark) {
            assert!(why.len() > 8, "{row} does not say why");
            return;
        }
    }
    for name in words.split_whitespace().filter(|name| !others.contains(name)) {
        assert!(all().contains(name), "{row}: there is no test {name:?}");
    }
}

/// The names of all tests in the tree.
fn all() -> &'static BTreeSet<String> {
    static ALL: OnceLock<BTreeSet<String>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut names = BTreeSet::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["src", "proxier/src", "proxier/tests", "golden/src", "golden/tests", "golden/e2e"] {
            collect(&root.join(folder), &mut names);
        }
        assert!(names.len() > 150, "only {} tests found", names.len());
        names
    })
}

fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            // In a test's own words: the attribute, then perhaps others, then the function.
            for after in text.split("#[test]").skip(1) {
                let name = after.split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
                names.extend(name.map(|(name, _)| name.to_owned()));
            }
        }
    }
}
