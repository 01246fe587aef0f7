//! The number of random cases, scaled by PROPTEST_CASES.

use proptest::test_runner::Config;

/// Proptest's configuration with that many cases; PROPTEST_CASES scales it relative to the default 300.
pub fn configuration(cases: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse::<u32>().ok());
    let cases = asked.map_or(cases, |asked| (asked * cases / 300).max(1));
    Config { cases, failure_persistence: None, ..Config::default() }
}
