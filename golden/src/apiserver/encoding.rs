//! The encodings of answers and their media types.

/// How an answer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Protobuf,
}

/// Which encodings the server offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MediaTypes {
    /// JSON and protobuf, as kube-apiserver does for its own resources.
    #[default]
    JsonAndProtobuf,
    /// JSON, and 406 for who accepts nothing else: custom resources (apiextensions-apiserver) and many aggregated servers.
    OnlyJson,
    /// JSON, whatever the `Accept` header says: servers that are not built on k8s.io/apiserver, and proxies before them
    /// that rewrite bodies. HTTP allows it (RFC 9110, 12.5.1).
    AlwaysJson,
}

impl Encoding {
    /// The `Content-Type` of an answer that is no watch.
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
