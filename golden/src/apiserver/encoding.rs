//! The encodings of answers and their media types.

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Protobuf,
}

/// The encodings that the server offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MediaTypes {
    /// JSON and protobuf, like kube-apiserver for its own resources.
    #[default]
    JsonAndProtobuf,
    /// JSON, and 406 for clients that accept nothing else: custom resources (apiextensions-apiserver) and many
    /// aggregated servers.
    OnlyJson,
    /// JSON, whatever the `Accept` header: servers without k8s.io/apiserver, and proxies that rewrite bodies.
    ///
    /// HTTP allows it (RFC 9110, 12.5.1).
    AlwaysJson,
}

impl Encoding {
    /// The `Content-Type` of an answer other than a watch.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The `Content-Type` of a watch.
    pub(super) fn stream_media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
}
