//! `metav1.Status`: why an API server refused a request.

use std::time::Duration;

use proxier::protobuf::{self, Fault, Message, Value};
use serde::{Deserialize, Deserializer};

use super::Encoding;
use super::protobuf::Envelope;

/// Why a request failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code; 0 if the status does not say.
    pub code: u16,
    /// The reason in one word, such as `Expired`.
    pub reason: String,
    /// The reason in a sentence.
    pub message: String,
    /// How long to wait before the next request.
    pub retry_after: Option<Duration>,
    /// The reason and the field of each cause.
    pub causes: Vec<(String, String)>,
}

/// Decodes the body of a failed request; `None` if it is not a `Status`, but a proxy's error page for example.
#[must_use]
pub fn decode_status(encoding: Encoding, body: &[u8]) -> Option<Status> {
    let wire: WireStatus = match encoding {
        Encoding::Json => serde_json::from_slice(body).ok().filter(|status: &WireStatus| status.kind == "Status")?,
        Encoding::Protobuf => {
            let envelope = Envelope::open(body).ok().filter(|envelope| envelope.type_meta.kind == "Status")?;
            protobuf::decode(envelope.raw).ok()?
        }
    };
    Some(wire.into())
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireStatus {
    kind: String,
    code: i32,
    reason: String,
    message: String,
    #[serde(deserialize_with = "nullable")]
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    #[serde(deserialize_with = "nullable")]
    causes: Vec<Cause>,
    retry_after_seconds: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    field: String,
}

impl From<WireStatus> for Status {
    fn from(WireStatus { code, reason, message, details, .. }: WireStatus) -> Self {
        let seconds = u64::try_from(details.retry_after_seconds).unwrap_or_default();
        Self {
            code: u16::try_from(code).unwrap_or_default(),
            reason,
            message,
            retry_after: (seconds > 0).then(|| Duration::from_secs(seconds)),
            causes: details.causes.into_iter().map(|cause| (cause.reason, cause.field)).collect(),
        }
    }
}

impl Message for WireStatus {
    fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Fault> {
        match number {
            3 => value.text()?.clone_into(&mut self.message),
            4 => value.text()?.clone_into(&mut self.reason),
            5 => protobuf::merge(&mut self.details, value.bytes()?)?,
            6 => self.code = value.number("i32")?,
            _ => {}
        }
        Ok(())
    }
}

impl Message for Details {
    fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Fault> {
        match number {
            4 => self.causes.push(protobuf::decode(value.bytes()?)?),
            5 => self.retry_after_seconds = value.number("i32")?,
            _ => {}
        }
        Ok(())
    }
}

impl Message for Cause {
    fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Fault> {
        match number {
            1 => value.text()?.clone_into(&mut self.reason),
            3 => value.text()?.clone_into(&mut self.field),
            _ => {}
        }
        Ok(())
    }
}
