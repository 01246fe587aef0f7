//! The lists in golden/surface name tests; these tests must exist.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::version::LAST_MINOR;

/// Checks the `test` field of a row: names of tests or files, separated by blanks; "different: why"; "open: why"; or
/// one of `others`.
#[track_caller]
pub fn check_words(row: &str, words: &str, others: &[&str]) {
    assert!(!words.trim().is_empty(), "{row} names no test");
    for mark in ["different: ", "open: "] {
        if let Some(why) = words.strip_prefix(mark) {
            assert!(why.len() > 8, "{row} gives no reason");
            return;
        }
    }
    for name in words.split_whitespace().filter(|name| !others.contains(name)) {
        let there = if name.contains('/') { root().join(name).is_file() } else { all().contains(name) };
        assert!(there, "{row}: no test {name:?}");
    }
}

/// Checks the `since` field of a row: a release later than 1.36, which the lists were first made of, that is supported.
#[track_caller]
pub fn check_since(row: &str, since: Option<&str>) {
    let Some(since) = since else { return };
    let minor = since.strip_prefix("1.").and_then(|minor| minor.parse::<u8>().ok());
    assert!(minor.is_some_and(|minor| (37..=LAST_MINOR).contains(&minor)), "{row}: since {since:?}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names of all tests in the tree.
fn all() -> &'static BTreeSet<String> {
    static ALL: OnceLock<BTreeSet<String>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut names = BTreeSet::new();
        for folder in ["src", "proxier/src", "proxier/tests", "golden/src", "golden/tests", "golden/e2e"] {
            collect(&root().join(folder), &mut names);
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
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                is_test |= ["#[test]", "#[tokio::test"].iter().any(|attribute| line.starts_with(attribute));
                let name =
                    line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
                if let Some(name) = name.filter(|_| std::mem::take(&mut is_test)) {
                    names.insert(name.to_owned());
                }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    about: String,
    test: String,
    #[serde(default)]
    since: Option<String>,
}

#[test]
fn every_listed_behaviour_names_its_test_or_a_reason() {
    let text = include_str!("../golden/surface/behaviour.yaml");
    let rows: Vec<Row> = serde_saphyr::from_str(text).expect("behaviour.yaml");
    let mut ids = BTreeSet::new();
    for row in &rows {
        assert!(ids.insert(&*row.id), "{} is there twice", row.id);
        assert!(!row.about.is_empty(), "{} has no description", row.id);
        check_words(&row.id, &row.test, &[]);
        check_since(&row.id, row.since.as_deref());
    }
    let numbered = |letter: &str, last| (1..=last).map(|number| format!("{letter}{number}")).collect::<Vec<_>>();
    for id in numbered("C", 18).into_iter().chain(numbered("I", 24)) {
        assert!(ids.contains(&*id), "{id} is missing");
    }
    let sections =
        ["2.2", "2.3", "2.4", "2.5", "5.1", "5.2", "5.3", "5.4", "5.5", "5.6", "5.7", "5.8", "5.9", "5.10", "5.11"];
    for section in sections.into_iter().chain(["6", "7.1", "7.2", "7.3", "7.4", "8", "9", "L", "N"]) {
        let of_it = |id: &&str| *id == section || id.strip_prefix(section).is_some_and(|rest| rest.starts_with('-'));
        assert!(ids.iter().any(of_it), "section {section} is missing");
    }
}
