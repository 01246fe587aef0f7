//! Which objects are listed and watched, and the requests for them.

use std::fmt::Write as _;
use std::time::Duration;

use proxier::model::NamespacedName;
use proxier::track::{Kind, SERVICE_NAME};

/// Objects per page of a list, client-go's default.
const PAGE_SIZE: u32 = 500;

/// The objects of one kind that concern this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Their kind.
    pub kind: Kind,
    path: String,
    labels: String,
    fields: String,
}

impl Resource {
    /// Objects of `kind` with kube-proxy's selectors. `only` narrows Services and EndpointSlices to one Service.
    pub fn new(kind: Kind, node_name: &str, only: Option<&NamespacedName>) -> Self {
        let (prefix, plural) = match kind {
            Kind::Node => ("/api/v1", "nodes"),
            Kind::Service => ("/api/v1", "services"),
            Kind::EndpointSlice => ("/apis/discovery.k8s.io/v1", "endpointslices"),
            Kind::ServiceCidr => ("/apis/networking.k8s.io/v1", "servicecidrs"),
        };
        let (mut labels, mut fields) = match kind {
            Kind::Node => (String::new(), format!("metadata.name={node_name}")),
            Kind::Service => {
                ("!service.kubernetes.io/service-proxy-name".to_owned(), "spec.clusterIP!=None".to_owned())
            }
            Kind::EndpointSlice => ("!service.kubernetes.io/headless".to_owned(), String::new()),
            Kind::ServiceCidr => Default::default(),
        };
        let only = only.filter(|_| kind.is_namespaced());
        let path = match only {
            Some(service) => format!("{prefix}/namespaces/{}/{plural}", service.namespace),
            None => format!("{prefix}/{plural}"),
        };
        match (kind, only) {
            (Kind::Service, Some(service)) => _ = write!(fields, ",metadata.name={}", service.name),
            (Kind::EndpointSlice, Some(service)) => _ = write!(labels, ",{SERVICE_NAME}={}", service.name),
            _ => {}
        }
        Self { kind, path, labels, fields }
    }

    /// Path and query of a page of a list.
    pub fn list(&self, page: &Page) -> String {
        let limit = if page.limited { PAGE_SIZE.to_string() } else { String::new() };
        let (token, version) = (page.continue_token.as_str(), page.resource_version.as_str());
        self.request(&[("limit", &limit), ("continue", token), ("resourceVersion", version)])
    }

    /// Path and query of a list of one object, which tells the newest version.
    pub fn newest(&self) -> String {
        self.request(&[("limit", "1")])
    }

    /// Path and query of a watch from a version on. `timeout`: when the server ends it.
    pub fn watch(&self, resource_version: &str, timeout: Duration) -> String {
        self.request(&[
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", &timeout.as_secs().to_string()),
            ("watch", "true"),
        ])
    }

    /// Path and query of a streamed list: a watch that begins with all objects, then a bookmark.
    pub fn streamed_list(&self, resource_version: &str, timeout: Duration) -> String {
        self.request(&[
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("resourceVersionMatch", "NotOlderThan"),
            ("sendInitialEvents", "true"),
            ("timeoutSeconds", &timeout.as_secs().to_string()),
            ("watch", "true"),
        ])
    }

    /// Parameters in alphabetical order and without empty ones, as client-go has them.
    fn request(&self, parameters: &[(&str, &str)]) -> String {
        let selectors = [("fieldSelector", self.fields.as_str()), ("labelSelector", self.labels.as_str())];
        let mut parameters: Vec<_> =
            parameters.iter().chain(&selectors).filter(|(_, value)| !value.is_empty()).collect();
        parameters.sort();
        let (mut text, mut separator) = (self.path.clone(), '?');
        for (name, value) in parameters {
            _ = write!(text, "{separator}{name}=");
            escape(&mut text, value);
            separator = '&';
        }
        text
    }
}

/// Which page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most [`PAGE_SIZE`] objects; the watch cache ignores it when `resource_version` is "0".
    pub limited: bool,
    /// Where the page begins; empty: with the first object.
    pub continue_token: String,
    /// "0": any version that the watch cache has; empty: the latest from etcd; else at least as new as this version.
    pub resource_version: String,
}

/// Percent-encodes a query value.
fn escape(text: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            _ = write!(text, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_kube_proxys_selectors_and_no_empty_parameters() {
        let slices = Resource::new(Kind::EndpointSlice, "node-a", None);
        let page = Page { limited: true, resource_version: "0".into(), ..Page::default() };
        assert_eq!(
            slices.list(&page),
            "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless&limit=500\
             &resourceVersion=0"
        );
        let next = Page { limited: true, continue_token: "a+/=".into(), ..Page::default() };
        assert!(slices.list(&next).contains("?continue=a%2B%2F%3D&label"), "{}", slices.list(&next));
        let node = Resource::new(Kind::Node, "node-a", None);
        assert_eq!(
            node.watch("17", Duration::from_secs(333)),
            "/api/v1/nodes?allowWatchBookmarks=true&fieldSelector=metadata.name%3Dnode-a&resourceVersion=17\
             &timeoutSeconds=333&watch=true"
        );
        let streamed = node.streamed_list("", Duration::from_secs(333));
        assert!(streamed.contains("&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&"), "{streamed}");
        assert!(!streamed.contains("resourceVersion="), "{streamed}");
    }

    #[test]
    fn one_service_is_requested_in_its_namespace() {
        let name = NamespacedName::new("shop", "web");
        let path = |kind| Resource::new(kind, "node-a", Some(&name)).list(&Page::default());
        assert!(path(Kind::Service).starts_with("/api/v1/namespaces/shop/services?fieldSelector="));
        assert!(path(Kind::Service).contains("spec.clusterIP%21%3DNone%2Cmetadata.name%3Dweb"));
        assert!(path(Kind::EndpointSlice).contains("%2Ckubernetes.io%2Fservice-name%3Dweb"));
        assert!(path(Kind::Node).starts_with("/api/v1/nodes?"));
        assert_eq!(path(Kind::ServiceCidr), "/apis/networking.k8s.io/v1/servicecidrs");
    }
}
