//! Refusals, as the API server words them.
//!
//! In: what went wrong. Out: a `Status` object with the code, reason and message clients look at.
//! Must not know: connections, the store.

use serde_json::{Value, json};

/// A refusal: the body of an error response, or the object of an ERROR event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u16,
    reason: &'static str,
    message: String,
    details: Value,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    fn with(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    /// A watch or an exact list from before the kept history.
    pub(super) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    pub(super) fn continue_expired() -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You must \
                       start a new list without the continue parameter.";
        Self::new(410, "Expired", message)
    }

    /// A version this server has not reached yet.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        Self::new(504, "Timeout", format!("Too large resource version: {asked}, current: {current}")).with(json!({
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            "retryAfterSeconds": 1,
        }))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// A list option that is not allowed here.
    pub(super) fn forbidden_option(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        Self::new(422, "Invalid", message).with(json!({
            "group": "meta.k8s.io",
            "kind": "ListOptions",
            "causes": [{ "reason": "FieldValueForbidden", "message": format!("Forbidden: {why}"), "field": field }],
        }))
    }

    pub(super) fn not_found(plural: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{plural} \"{name}\" not found"))
            .with(json!({ "name": name, "kind": plural }))
    }

    pub(super) fn exists(plural: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{plural} \"{name}\" already exists"))
            .with(json!({ "name": name, "kind": plural }))
    }

    /// An object that is to be created without a name.
    pub(super) fn nameless() -> Self {
        Self::new(422, "Invalid", "metadata.name: Required value: name or generateName is required")
    }

    /// The fault switched on by a test.
    pub(super) fn of_code(code: u16) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: User \"system:kube-proxy\" cannot do that at the cluster scope"),
            404 => ("NotFound", "the server could not find the requested resource"),
            405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource"),
            406 => ("NotAcceptable", "only the following media types are accepted: application/json"),
            429 => ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
            500 => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
            503 => ("ServiceUnavailable", "apiserver not ready"),
            504 => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
            _ => ("Unknown", "unknown"),
        };
        let status = Self::new(code, reason, message);
        if code == 429 { status.with(json!({ "retryAfterSeconds": 1 })) } else { status }
    }

    pub(super) fn json(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}
