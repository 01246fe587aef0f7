//! Go's duration syntax: `1h0m0s`, `1.5s`, `-300ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Units and their nanoseconds.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A signed duration in nanoseconds. Validation rejects negative ones by field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

impl GoDuration {
    /// The zero duration.
    pub const ZERO: Self = Self(0);

    /// From nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// From seconds.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// In nanoseconds.
    #[must_use]
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// As a `Duration`; zero if negative.
    #[must_use]
    pub fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl FromStr for GoDuration {
    type Err = String;

    /// Parses numbers with units, or `0`.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid duration {text:?}: expected the form 30s or 1h30m");
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut nanos: i128 = 0;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
            let (number, after) = rest.split_at(end);
            let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            let (_, unit) = UNITS.iter().find(|(known, _)| *known == name).ok_or_else(invalid)?;
            nanos += scaled(number, *unit).ok_or_else(invalid)?;
            rest = after;
        }
        let nanos = if negative { -nanos } else { nanos };
        // Go's durations are limited to 292 years.
        i64::try_from(nanos).map(Self).map_err(|_| invalid())
    }
}

/// A decimal number of units in nanoseconds, truncated.
fn scaled(number: &str, unit: i64) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 20 || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let (mut nanos, mut unit) = (whole * i128::from(unit), i128::from(unit) * 1_000_000);
    for digit in fraction.bytes().take(18) {
        unit /= 10;
        nanos += i128::from(digit - b'0') * unit / 1_000_000;
    }
    Some(nanos)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, nanos) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let decimal = |unit: u64, digits: usize| {
            let text = format!("{}.{:0digits$}", nanos / unit, nanos % unit);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{sign}{nanos}ns"),
            1_000..1_000_000 => write!(f, "{sign}{}µs", decimal(1_000, 3)),
            1_000_000..1_000_000_000 => write!(f, "{sign}{}ms", decimal(1_000_000, 6)),
            _ => {
                let minutes = nanos / 60_000_000_000;
                let seconds = Self::seconds(nanos % 60_000_000_000);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => write!(f, "{sign}{seconds}s"),
                    (0, minutes) => write!(f, "{sign}{minutes}m{seconds}s"),
                    (hours, minutes) => write!(f, "{sign}{hours}h{minutes}m{seconds}s"),
                }
            }
        }
    }
}

impl GoDuration {
    fn seconds(nanos: u64) -> String {
        let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_and_printed_as_go_does() {
        for (text, millis, again) in [
            ("30s", 30_000, "30s"),
            ("1h0m0s", 3_600_000, "1h0m0s"),
            ("90m", 5_400_000, "1h30m0s"),
            ("1.5s", 1500, "1.5s"),
            (".5s", 500, "500ms"),
            ("0", 0, "0s"),
            ("-0", 0, "0s"),
            ("1m1ms", 60_001, "1m0.001s"),
            ("-5s", -5000, "-5s"),
            ("+1h", 3_600_000, "1h0m0s"),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration(millis * 1_000_000)), "{text}");
            assert_eq!(GoDuration(millis * 1_000_000).to_string(), again);
        }
        for (text, nanos, again) in [("1µs", 1_000, "1µs"), ("1.25us", 1_250, "1.25µs"), ("7ns", 7, "7ns")] {
            assert_eq!(text.parse(), Ok(GoDuration(nanos)), "{text}");
            assert_eq!(GoDuration(nanos).to_string(), again);
        }
        for text in ["", "-", "5", "s", "1d", "1h ", "1..s", ".s", "99999999h", "--1s"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_printed_duration_is_parsed_to_the_same_value(nanos: i64) {
            let duration = GoDuration(nanos);
            proptest::prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }
}
