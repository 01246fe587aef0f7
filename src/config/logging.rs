//! `logging`: fields, defaults and checks.
//!
//! In: what a file or flags say. Out: [`Logging`]. Must not know: how lines are written.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::duration::GoDuration;

/// `logging` as it is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoggingFile {
    /// `text` or `json`.
    pub format: String,
    /// How long a line may wait before it is written.
    pub flush_frequency: Option<FlushFrequency>,
    /// How much to log.
    pub verbosity: u32,
    /// How much to log in single files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VmoduleItem>,
    /// Options of each format.
    pub options: LoggingOptions,
}

/// One `pattern=level` of `vmodule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VmoduleItem {
    /// Which files, by name without `.rs`; `*` and `?` stand for others.
    pub file_pattern: String,
    /// How much to log there.
    pub verbosity: u32,
}

/// `logging.options`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggingOptions {
    /// Of the text format.
    pub text: OutputRouting,
    /// Of the JSON format.
    pub json: OutputRouting,
}

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutputRouting {
    /// Write errors to standard error and the rest to standard output.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub split_stream: bool,
    /// How many bytes may wait for being written to standard output.
    pub info_buffer_size: Quantity,
}

/// A duration that may be written as a number of nanoseconds, and then is written so again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlushFrequency {
    /// How long.
    pub duration: GoDuration,
    /// Whether it was a number.
    pub number: bool,
}

impl Serialize for FlushFrequency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.number { serializer.serialize_i64(self.duration.nanos()) } else { self.duration.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for FlushFrequency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a duration such as 5s, or a number of nanoseconds")]
        enum Either {
            Number(i64),
            Text(GoDuration),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Number(nanos) => Self { duration: GoDuration::from_nanos(nanos), number: true },
            Either::Text(duration) => Self { duration, number: false },
        })
    }
}

/// A number of bytes as Kubernetes writes it: `0`, `64Ki`, `1M`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity(String);

impl Default for Quantity {
    fn default() -> Self {
        Self("0".to_owned())
    }
}

impl Quantity {
    const UNITS: [(&'static str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];

    /// How many.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        Self::count(&self.0).unwrap_or(0)
    }

    fn count(text: &str) -> Option<u64> {
        let (digits, unit) = Self::UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        digits.parse::<u64>().ok()?.checked_mul(*unit)
    }
}

impl std::str::FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Self::count(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(format!("{text:?} is not a number of bytes such as 0, 64Ki or 1M")),
        }
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes such as 0, 64Ki or 1M")]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number.to_string())),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// How to log, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// JSON instead of text.
    pub json: bool,
    /// How much.
    pub verbosity: u32,
    /// How much in single files.
    pub vmodule: Vec<VmoduleItem>,
    /// Errors to standard error, the rest to standard output.
    pub split_stream: bool,
}
