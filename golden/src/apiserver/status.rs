//! Statuses of failed requests, with kube-apiserver's messages.
//!
//! `tests/apiserver/recorded.rs` compares them with recordings.

use serde_json::{Value, json};

use super::encoding::{Encoding, MediaTypes};
use super::protobuf;
use super::request::Request;
use super::resource::Target;

/// A failure `Status`: the body of an error response, or the object of an ERROR event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u16,
    reason: &'static str,
    message: String,
    details: Value,
    /// A continue token for an inconsistent continuation of the list.
    token: Option<String>,
}

impl Status {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, token: None }
    }

    pub(super) fn with(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    pub(super) fn with_token(mut self, token: String) -> Self {
        self.token = Some(token);
        self
    }

    /// Sets the delay for a retry, in the body and in the header.
    pub(super) fn retry_after(mut self, seconds: u32) -> Self {
        if self.details.is_null() {
            self.details = json!({});
        }
        self.details["retryAfterSeconds"] = json!(seconds);
        self
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// A list option that is not allowed with the others.
    pub(super) fn forbidden_option(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        let cause = json!({ "reason": "FieldValueForbidden", "message": format!("Forbidden: {why}"), "field": field });
        Self::new(422, "Invalid", message)
            .with(json!({ "group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause] }))
    }

    /// A `resourceVersionMatch` that is unknown or not supported here.
    pub(super) fn unsupported_match(given: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|value| format!("\"{value}\"")).collect();
        let why = format!("Unsupported value: \"{given}\": supported values: {}", supported.join(", "));
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: {why}");
        let cause = json!({ "reason": "FieldValueNotSupported", "message": why, "field": "resourceVersionMatch" });
        Self::new(422, "Invalid", message)
            .with(json!({ "group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause] }))
    }

    pub(super) fn not_found(plural: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{plural} \"{name}\" not found"))
            .with(json!({ "name": name, "kind": plural }))
    }

    pub(super) fn exists(plural: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{plural} \"{name}\" already exists"))
            .with(json!({ "name": name, "kind": plural }))
    }

    /// An object created without a name.
    pub(super) fn nameless() -> Self {
        Self::new(422, "Invalid", "metadata.name: Required value: name or generateName is required")
    }

    /// An `Accept` header without a supported media type.
    pub(super) fn not_acceptable(offered: MediaTypes, watch: bool) -> Self {
        let media_types = match (offered, watch) {
            (MediaTypes::JsonAndProtobuf, false) => {
                "application/json, application/yaml, application/vnd.kubernetes.protobuf"
            }
            (MediaTypes::JsonAndProtobuf, true) => {
                "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            }
            (_, false) => "application/json, application/yaml",
            (_, true) => "application/json;stream=watch",
        };
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {media_types}"))
    }

    /// A code chosen by a test, with a message about this request.
    pub(super) fn of_request(code: u16, request: &Request, target: Option<&Target<'_>>) -> Self {
        match (code, target) {
            (403, Some(target)) => {
                let (plural, group) = (target.resource.plural, target.resource.group);
                let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
                let name = target.name.map(|name| format!(" \"{name}\"")).unwrap_or_default();
                let message = format!(
                    "{qualified}{name} is forbidden: User \"system:kube-proxy\" cannot {} resource \"{plural}\" in API \
                     group \"{group}\" at the cluster scope",
                    verb(request, target)
                );
                let mut details = json!({ "kind": plural });
                for (field, value) in [("group", Some(group)), ("name", target.name)] {
                    if let Some(value) = value.filter(|value| !value.is_empty()) {
                        details[field] = json!(value);
                    }
                }
                Self::new(403, "Forbidden", message).with(details)
            }
            _ => Self::of_code(code),
        }
    }

    /// The default status of a code.
    pub(super) fn of_code(code: u16) -> Self {
        let (reason, message) = match code {
            400 => ("BadRequest", "the server rejected our request for an unknown reason"),
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: User \"system:kube-proxy\" cannot do that at the cluster scope"),
            404 => ("NotFound", "the server could not find the requested resource"),
            405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource"),
            410 => ("Expired", "The resourceVersion for the provided watch is too old."),
            422 => ("Invalid", "the server rejected our request due to an error in our request"),
            429 => ("TooManyRequests", "storage is (re)initializing"),
            500 => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
            503 => ("ServiceUnavailable", "apiserver not ready"),
            504 => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
            _ => ("Unknown", "unknown"),
        };
        let status = Self::new(code, reason, message);
        match code {
            404 | 405 => status.with(json!({})),
            429 => status.retry_after(1),
            _ => status,
        }
    }

    /// The header `Retry-After`, if set.
    pub(super) fn headers(&self) -> String {
        match &self.details["retryAfterSeconds"] {
            Value::Null => String::new(),
            seconds => format!("Retry-After: {seconds}\r\n"),
        }
    }

    pub(super) fn json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        if let Some(token) = &self.token {
            status["metadata"]["continue"] = json!(token);
        }
        status
    }

    /// The status as a response body.
    pub(super) fn body(&self, encoding: Encoding) -> Vec<u8> {
        match encoding {
            Encoding::Json => format!("{}\n", self.json()).into_bytes(),
            Encoding::Protobuf => protobuf::status(&self.json()),
        }
    }
}

/// The verb of a request in authorization messages.
fn verb(request: &Request, target: &Target<'_>) -> &'static str {
    match request.method.as_str() {
        "POST" => "create",
        "PATCH" => "patch",
        _ if request.is_watch() => "watch",
        _ if target.name.is_some() => "get",
        _ => "list",
    }
}
