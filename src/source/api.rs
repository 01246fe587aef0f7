//! The API server as a source: a reflector for each kind.

use futures::future::OptionFuture;
use proxier::model::{Mode, NamespacedName};
use proxier::track::Kind;

use super::reflector::{Reflector, Resource, StreamedLists};
use super::wire::Encoding;
use super::{Outages, RunningSource, Sink};
use crate::client::ApiClient;
use crate::config::{self, ValidatedConfig};

/// Lists and watches forever; waits for a server that does not answer. `only` restricts it to one Service and its
/// EndpointSlices. The outages of each kind are recorded.
pub fn start(
    (client, outages): (ApiClient, Outages),
    settings: &ValidatedConfig,
    only: Option<&NamespacedName>,
    sinks: [Sink; 4],
) -> RunningSource {
    let [nodes, services, slices, networks] = sinks;
    let (accept, streamed_lists) = (accept(&settings.client), StreamedLists::default());
    let reflect = |kind, sink| {
        let resource = Resource::new(kind, &settings.proxier.node_name, only);
        Reflector::new(client.clone(), resource, &accept, (&streamed_lists, &outages), sink).run()
    };
    let nodes = reflect(Kind::Node, nodes);
    let services = reflect(Kind::Service, services);
    let slices = reflect(Kind::EndpointSlice, slices);
    // Only nftables mode needs the networks of cluster IPs.
    let networks = (settings.mode == Mode::Nftables).then(|| reflect(Kind::ServiceCidr, networks));
    Box::pin(async move {
        tokio::join!(nodes, services, slices, OptionFuture::from(networks));
        "the watches ended".to_owned()
    })
}

/// The Accept header that client-go derives from `clientConnection`: `acceptContentTypes`, or else `contentType` and
/// anything. Types that cannot be decoded are left out, so that the server does not choose one of them.
///
/// By default it asks first for objects without managed fields, which are often half of an object and are not used here.
/// API servers before 1.38 ignore the parameter; 1.38 needs the feature gate ManagedFieldsOptOut.
fn accept(client: &config::ClientConfig) -> String {
    let can_decode = |media_type: &&str| {
        let (name, _) = media_type.split_once(';').unwrap_or((media_type, ""));
        matches!(name.trim(), "*/*" | "application/*") || Encoding::of(media_type).is_some()
    };
    let accepted: Vec<&str> = client.accept_content_types.split(',').map(str::trim).filter(can_decode).collect();
    if !accepted.is_empty() {
        return accepted.join(",");
    }
    let preferred = Some(client.content_type.as_str()).filter(can_decode).unwrap_or(config::DEFAULT_CONTENT_TYPE);
    format!("{preferred};drop=metadata.managedFields, {preferred}, */*")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept_of(accepted: &str, content_type: &str) -> String {
        let settings =
            config::validate(config::KubeProxyConfiguration::default().with_defaults(), "node-a").expect("defaults");
        accept(&config::ClientConfig {
            accept_content_types: accepted.to_owned(),
            content_type: content_type.to_owned(),
            ..settings.client
        })
    }

    #[test]
    fn accept_header_is_client_gos_without_types_that_cannot_be_decoded() {
        const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
        let settings =
            config::validate(config::KubeProxyConfiguration::default().with_defaults(), "node-a").expect("defaults");
        let without = ";drop=metadata.managedFields";
        assert_eq!(accept(&settings.client), format!("{PROTOBUF}{without}, {PROTOBUF}, */*"));
        let json = "application/json";
        assert_eq!(accept_of("", json), format!("{json}{without}, {json}, */*"));
        assert_eq!(accept_of("", "application/cbor"), format!("{PROTOBUF}{without}, {PROTOBUF}, */*"));
        assert_eq!(accept_of("application/json", PROTOBUF), "application/json");
        let both = format!("application/cbor, {PROTOBUF};q=0.9,application/json");
        assert_eq!(accept_of(&both, PROTOBUF), format!("{PROTOBUF};q=0.9,application/json"));
        assert_eq!(accept_of("application/cbor", json), format!("{json}{without}, {json}, */*"));
    }
}
