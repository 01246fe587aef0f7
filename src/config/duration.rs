//! Durations as Go writes them: `1h0m0s`, `1.5s`, `300ms`.
//!
//! In: text. Out: a duration. Must not know: which setting it is for. Negative ones are nobody's setting here.

use std::time::Duration;

const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Parses a duration: numbers with units, or `0`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration such as 30s or 1h30m");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..end]).ok_or_else(invalid)?;
        nanos += number * unit;
        rest = &rest[end..];
    }
    // Go's durations end at 292 years.
    if nanos > 9.2e18 {
        return Err(format!("{text:?} is too long a duration"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked above; never negative
    Ok(Duration::from_nanos(nanos as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in
            [("30s", 30_000), ("1h0m0s", 3_600_000), ("1.5s", 1500), ("0", 0), ("0s", 0), ("1m1ms", 60_001)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("1µs"), Ok(Duration::from_micros(1)));
        for text in ["", "5", "s", "-5s", "1d", "1h ", "1..s", "99999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
