//! Translates the own Node.

use super::change::{Change, ObjectKey, Translation, Translator, canonical, parse_ip, parse_net};
use super::objects::Node;
use crate::model::NodeInfo;

/// The taint of nodes that the cluster autoscaler is about to delete.
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

impl Translator {
    pub(super) fn node(&self, key: &ObjectKey, node: &Node) -> Translation {
        if *key.name.name != *self.node_name {
            return Translation::default();
        }
        let of_kind = |kind| {
            let addresses = node.status.addresses.iter().filter(move |address| address.kind == kind);
            addresses.filter_map(|address| parse_ip(&address.address)).map(canonical)
        };
        let zone = node.metadata.labels.zone.as_deref().unwrap_or_default();
        let info = NodeInfo {
            addresses: of_kind("InternalIP").chain(of_kind("ExternalIP")).collect(),
            pod_cidrs: node.spec.pod_cidrs.iter().filter_map(|cidr| parse_net(cidr)).collect(),
            zone: zone.into(),
        };
        let leaving = node.spec.taints.iter().any(|taint| taint.key == LEAVING) || node.metadata.deleted;
        Translation { node_eligible: Some(!leaving), ..Translation::everywhere(&Change::Node(info)) }
    }
}
