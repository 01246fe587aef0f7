//! The served collections: paths, kinds, schemas and empty objects.

use serde_json::Value;

use super::protobuf::{self, Message};

/// A collection of the API.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: &'static str,
    pub(super) group: &'static str,
    pub(super) plural: &'static str,
    pub(super) namespaced: bool,
    /// The fields besides `metadata.name` and `metadata.namespace` that a fieldSelector may use.
    pub(super) selectable: &'static [&'static str],
    /// The JSON of an empty Go struct, which bookmarks are: decoders meet `"endpoints":null` and `"addressType":""`.
    pub(super) empty: &'static str,
    pub(super) message: Message,
}

static RESOURCES: [Resource; 5] = [
    Resource {
        kind: "Node",
        group: "",
        plural: "nodes",
        namespaced: false,
        selectable: &["spec.unschedulable"],
        empty: concat!(
            r#""spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"machineID":"","#,
            r#""systemUUID":"","bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","#,
            r#""kubeletVersion":"","kubeProxyVersion":"","operatingSystem":"","architecture":""}}"#
        ),
        message: protobuf::NODE,
    },
    Resource {
        kind: "Service",
        group: "",
        plural: "services",
        namespaced: true,
        selectable: &["spec.clusterIP", "spec.type"],
        empty: r#""spec":{},"status":{"loadBalancer":{}}"#,
        message: protobuf::SERVICE,
    },
    Resource {
        kind: "EndpointSlice",
        group: "discovery.k8s.io",
        plural: "endpointslices",
        namespaced: true,
        selectable: &[],
        empty: r#""addressType":"","endpoints":null,"ports":null"#,
        message: protobuf::ENDPOINT_SLICE,
    },
    Resource {
        kind: "ServiceCIDR",
        group: "networking.k8s.io",
        plural: "servicecidrs",
        namespaced: false,
        selectable: &[],
        empty: r#""spec":{},"status":{}"#,
        message: protobuf::SERVICE_CIDR,
    },
    Resource {
        kind: "Event",
        group: "events.k8s.io",
        plural: "events",
        namespaced: true,
        selectable: &["reason", "type"],
        empty: concat!(
            r#""eventTime":null,"regarding":{},"deprecatedSource":{},"deprecatedFirstTimestamp":null,"#,
            r#""deprecatedLastTimestamp":null"#
        ),
        message: protobuf::EVENT,
    },
];

impl Resource {
    pub(super) fn of_kind(kind: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|resource| resource.kind == kind)
    }

    pub(super) fn all() -> impl Iterator<Item = &'static Self> {
        RESOURCES.iter()
    }

    /// The empty object with this metadata, as its Go struct prints it.
    pub(super) fn bookmark(&self, metadata: &Value) -> String {
        let (kind, version, empty) = (self.kind, self.api_version(), self.empty);
        format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},{empty}}}"#)
    }

    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group) }
    }
}

/// The parsed path of a request.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(super) fn of_path(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match segments.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let (plural, name) = match rest {
            [plural] => (*plural, None),
            [plural, name] => (*plural, Some(*name)),
            _ => return None,
        };
        let resource = RESOURCES.iter().find(|r| r.group == group && r.plural == plural)?;
        (resource.namespaced || namespace.is_none()).then_some(Self { resource, namespace, name })
    }
}
