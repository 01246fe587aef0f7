//! How many random cases are tried.
//!
//! In: how many there are to be usually, and PROPTEST_CASES. Out: proptest's settings. Must not know: what is tried.

use proptest::test_runner::Config;

/// So many cases; PROPTEST_CASES asks for more or less of all, relative to the usual 300.
pub fn configuration(cases: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse::<u32>().ok());
    let cases = asked.map_or(cases, |asked| (asked * cases / 300).max(1));
    Config { cases, failure_persistence: None, ..Config::default() }
}
