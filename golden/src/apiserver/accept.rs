//! Content negotiation, from an `Accept` header to the encoding of the answer.
//!
//! As k8s.io/apiserver (endpoints/handlers/negotiation): clauses by falling `q`, wildcards last, and the first that
//! matches a media type of the server. YAML is not offered.

use super::encoding::{Encoding, MediaTypes};
use super::status::Status;

/// A clause of an `Accept` header.
#[derive(Debug)]
struct Clause<'a> {
    type_: &'a str,
    subtype: &'a str,
    q: f32,
    /// The parameters other than `q`.
    parameters: Vec<(&'a str, &'a str)>,
}

const PROTOBUF: (&str, &str) = ("application", "vnd.kubernetes.protobuf");
const JSON: (&str, &str) = ("application", "json");

impl Encoding {
    /// The encoding for a request. The error is 406 with kube-apiserver's message.
    pub(super) fn negotiate(accept: &str, offered: MediaTypes, watch: bool) -> Result<Self, Status> {
        let media_types: &[(Self, (&str, &str))] = match offered {
            MediaTypes::JsonAndProtobuf => &[(Self::Json, JSON), (Self::Protobuf, PROTOBUF)],
            MediaTypes::OnlyJson => &[(Self::Json, JSON)],
            MediaTypes::AlwaysJson => return Ok(Self::Json),
        };
        if accept.is_empty() {
            return Ok(Self::Json);
        }
        let mut clauses: Vec<Clause> = accept.split(',').filter_map(Clause::parse).collect();
        // A stable sort: among equals, the first clause wins.
        clauses.sort_by(|a, b| b.q.total_cmp(&a.q).then(a.wildcards().cmp(&b.wildcards())));
        let matching = clauses.iter().filter(|clause| clause.is_served()).find_map(|clause| {
            media_types.iter().find(|(_, media_type)| clause.matches(*media_type)).map(|(encoding, _)| *encoding)
        });
        matching.ok_or_else(|| Status::not_acceptable(offered, watch))
    }
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';');
        let (type_, subtype) = match parts.next()?.trim().split_once('/') {
            Some((type_, subtype)) => (type_.trim(), subtype.trim()),
            None if text.trim() == "*" => ("*", "*"),
            None => return None,
        };
        let mut clause = Self { type_, subtype, q: 1.0, parameters: Vec::new() };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => clause.q = value.trim().parse().unwrap_or_default(),
                name => clause.parameters.push((name, value.trim())),
            }
        }
        Some(clause)
    }

    fn wildcards(&self) -> usize {
        usize::from(self.type_ == "*") + usize::from(self.subtype == "*")
    }

    fn matches(&self, (type_, subtype): (&str, &str)) -> bool {
        (self.type_ == "*" || self.type_ == type_) && (self.subtype == "*" || self.subtype == subtype)
    }

    /// Whether the server supports the parameters. Tables and partial objects (`as=Table`) are not supported.
    fn is_served(&self) -> bool {
        self.parameters.iter().all(|(name, value)| match *name {
            "stream" => matches!(*value, "" | "watch"),
            "as" | "g" | "v" | "sv" => false,
            _ => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PB: &str = "application/vnd.kubernetes.protobuf";

    fn negotiated(accept: &str) -> Option<Encoding> {
        Encoding::negotiate(accept, MediaTypes::JsonAndProtobuf, false).ok()
    }

    #[test]
    fn the_first_acceptable_type_of_the_highest_q_wins() {
        for (accept, expected) in [
            ("", Some(Encoding::Json)),
            ("*/*", Some(Encoding::Json)),
            ("application/*", Some(Encoding::Json)),
            (PB, Some(Encoding::Protobuf)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Encoding::Protobuf)),
            ("application/json,application/vnd.kubernetes.protobuf", Some(Encoding::Json)),
            ("application/vnd.kubernetes.protobuf;q=0.5, application/json", Some(Encoding::Json)),
            ("application/json;q=0.8, application/vnd.kubernetes.protobuf;q=0.9", Some(Encoding::Protobuf)),
            ("*/*, application/vnd.kubernetes.protobuf", Some(Encoding::Protobuf)),
            ("application/vnd.kubernetes.protobuf;stream=watch", Some(Encoding::Protobuf)),
            ("application/vnd.kubernetes.protobuf;stream=other, application/json", Some(Encoding::Json)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io, application/json", Some(Encoding::Json)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", None),
            ("text/html", None),
            ("nonsense", None),
        ] {
            assert_eq!(negotiated(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn a_server_of_json_refuses_or_ignores_protobuf() {
        let both = "application/vnd.kubernetes.protobuf,application/json";
        for (offered, accept, expected) in [
            (MediaTypes::OnlyJson, both, Some(Encoding::Json)),
            (MediaTypes::OnlyJson, PB, None),
            (MediaTypes::AlwaysJson, PB, Some(Encoding::Json)),
        ] {
            assert_eq!(Encoding::negotiate(accept, offered, true).ok(), expected, "{offered:?}, {accept}");
        }
    }
}
