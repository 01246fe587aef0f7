//! `logging`: the fields of KubeProxyConfiguration, and the validated [`Logging`].

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::duration::GoDuration;

/// `logging` as configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoggingFile {
    /// `text` or `json`.
    pub format: String,
    /// The longest time that a line may be buffered.
    pub flush_frequency: Option<FlushFrequency>,
    /// The log level.
    pub verbosity: u32,
    /// Log levels of single files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VmoduleItem>,
    /// Options of each format.
    pub options: LoggingOptions,
}

/// One `pattern=level` of `vmodule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VmoduleItem {
    /// The pattern of file names without `.rs`; `*` and `?` are wildcards.
    pub file_pattern: String,
    /// The log level of these files.
    pub verbosity: u32,
}

/// `logging.options`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggingOptions {
    /// Options of the text format.
    pub text: OutputRouting,
    /// Options of the JSON format.
    pub json: OutputRouting,
}

/// Where lines are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutputRouting {
    /// Write errors to standard error and the rest to standard output.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub split_stream: bool,
    /// How many bytes may be buffered for standard output.
    pub info_buffer_size: Quantity,
}

/// A duration that may be configured as a number of nanoseconds, and is written back as such.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlushFrequency {
    /// The duration.
    pub duration: GoDuration,
    /// Whether it was configured as a number.
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

/// A number of bytes in Kubernetes' notation: `0`, `64Ki`, `1M`.
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

    /// The number of bytes.
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

/// The validated logging configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// JSON instead of text.
    pub json: bool,
    /// The log level.
    pub verbosity: u32,
    /// Log levels of single files.
    pub vmodule: Vec<VmoduleItem>,
    /// Write errors to standard error and the rest to standard output.
    pub split_stream: bool,
}
