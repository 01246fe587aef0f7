//! The messages of the served kinds (k8s.io/api 0.36).

use super::schema::Type::{Bool, Int, IntOrString, MicroTime, Quantity, Text, Time};
use super::schema::{CONDITION, Message, OBJECT_META, Type, always, each, if_set, map};

const PORT_STATUS: Message = &[always(1, "port", Int), always(2, "protocol", Text), if_set(3, "error", Text)];

const LOAD_BALANCER_INGRESS: Message = &[
    always(1, "ip", Text),
    always(2, "hostname", Text),
    if_set(3, "ipMode", Text),
    each(4, "ports", Type::Message(PORT_STATUS)),
];

const LOAD_BALANCER_STATUS: Message = &[each(1, "ingress", Type::Message(LOAD_BALANCER_INGRESS))];

const SERVICE_STATUS: Message =
    &[always(1, "loadBalancer", Type::Message(LOAD_BALANCER_STATUS)), each(2, "conditions", Type::Message(CONDITION))];

const SERVICE_PORT: Message = &[
    always(1, "name", Text),
    always(2, "protocol", Text),
    always(3, "port", Int),
    always(4, "targetPort", IntOrString),
    always(5, "nodePort", Int),
    if_set(6, "appProtocol", Text),
];

const CLIENT_IP_CONFIG: Message = &[if_set(1, "timeoutSeconds", Int)];
const SESSION_AFFINITY_CONFIG: Message = &[if_set(1, "clientIP", Type::Message(CLIENT_IP_CONFIG))];

const SERVICE_SPEC: Message = &[
    each(1, "ports", Type::Message(SERVICE_PORT)),
    map(2, "selector", Text),
    always(3, "clusterIP", Text),
    always(4, "type", Text),
    each(5, "externalIPs", Text),
    always(7, "sessionAffinity", Text),
    always(8, "loadBalancerIP", Text),
    each(9, "loadBalancerSourceRanges", Text),
    always(10, "externalName", Text),
    always(11, "externalTrafficPolicy", Text),
    always(12, "healthCheckNodePort", Int),
    always(13, "publishNotReadyAddresses", Bool),
    if_set(14, "sessionAffinityConfig", Type::Message(SESSION_AFFINITY_CONFIG)),
    if_set(17, "ipFamilyPolicy", Text),
    each(18, "clusterIPs", Text),
    each(19, "ipFamilies", Text),
    if_set(20, "allocateLoadBalancerNodePorts", Bool),
    if_set(21, "loadBalancerClass", Text),
    if_set(22, "internalTrafficPolicy", Text),
    if_set(23, "trafficDistribution", Text),
];

pub(in crate::apiserver) const SERVICE: Message = &[
    always(1, "metadata", Type::Message(OBJECT_META)),
    always(2, "spec", Type::Message(SERVICE_SPEC)),
    always(3, "status", Type::Message(SERVICE_STATUS)),
];

const OBJECT_REFERENCE: Message = &[
    always(1, "kind", Text),
    always(2, "namespace", Text),
    always(3, "name", Text),
    always(4, "uid", Text),
    always(5, "apiVersion", Text),
    always(6, "resourceVersion", Text),
    always(7, "fieldPath", Text),
];

const ENDPOINT_CONDITIONS: Message =
    &[if_set(1, "ready", Bool), if_set(2, "serving", Bool), if_set(3, "terminating", Bool)];
const NAMED: Message = &[always(1, "name", Text)];
const ENDPOINT_HINTS: Message = &[each(1, "forZones", Type::Message(NAMED)), each(2, "forNodes", Type::Message(NAMED))];

const ENDPOINT: Message = &[
    each(1, "addresses", Text),
    always(2, "conditions", Type::Message(ENDPOINT_CONDITIONS)),
    if_set(3, "hostname", Text),
    if_set(4, "targetRef", Type::Message(OBJECT_REFERENCE)),
    map(5, "deprecatedTopology", Text),
    if_set(6, "nodeName", Text),
    if_set(7, "zone", Text),
    if_set(8, "hints", Type::Message(ENDPOINT_HINTS)),
];

const ENDPOINT_PORT: Message =
    &[if_set(1, "name", Text), if_set(2, "protocol", Text), if_set(3, "port", Int), if_set(4, "appProtocol", Text)];

pub(in crate::apiserver) const ENDPOINT_SLICE: Message = &[
    always(1, "metadata", Type::Message(OBJECT_META)),
    each(2, "endpoints", Type::Message(ENDPOINT)),
    each(3, "ports", Type::Message(ENDPOINT_PORT)),
    always(4, "addressType", Text),
];

const TAINT: Message =
    &[always(1, "key", Text), always(2, "value", Text), always(3, "effect", Text), if_set(4, "timeAdded", Time)];

const NODE_SPEC: Message = &[
    always(1, "podCIDR", Text),
    always(2, "externalID", Text),
    always(3, "providerID", Text),
    always(4, "unschedulable", Bool),
    each(5, "taints", Type::Message(TAINT)),
    each(7, "podCIDRs", Text),
];

const NODE_CONDITION: Message = &[
    always(1, "type", Text),
    always(2, "status", Text),
    always(3, "lastHeartbeatTime", Time),
    always(4, "lastTransitionTime", Time),
    always(5, "reason", Text),
    always(6, "message", Text),
];

const DAEMON_ENDPOINT: Message = &[always(1, "Port", Int)];
const NODE_SWAP_STATUS: Message = &[if_set(1, "capacity", Int)];

const NODE_SYSTEM_INFO: Message = &[
    always(1, "machineID", Text),
    always(2, "systemUUID", Text),
    always(3, "bootID", Text),
    always(4, "kernelVersion", Text),
    always(5, "osImage", Text),
    always(6, "containerRuntimeVersion", Text),
    always(7, "kubeletVersion", Text),
    always(8, "kubeProxyVersion", Text),
    always(9, "operatingSystem", Text),
    always(10, "architecture", Text),
    if_set(11, "swap", Type::Message(NODE_SWAP_STATUS)),
];

const NODE_STATUS: Message = &[
    map(1, "capacity", Quantity),
    map(2, "allocatable", Quantity),
    always(3, "phase", Text),
    each(4, "conditions", Type::Message(NODE_CONDITION)),
    each(5, "addresses", Type::Message(&[always(1, "type", Text), always(2, "address", Text)])),
    always(6, "daemonEndpoints", Type::Message(&[always(1, "kubeletEndpoint", Type::Message(DAEMON_ENDPOINT))])),
    always(7, "nodeInfo", Type::Message(NODE_SYSTEM_INFO)),
    each(8, "images", Type::Message(&[each(1, "names", Text), always(2, "sizeBytes", Int)])),
    each(9, "volumesInUse", Text),
];

pub(in crate::apiserver) const NODE: Message = &[
    always(1, "metadata", Type::Message(OBJECT_META)),
    always(2, "spec", Type::Message(NODE_SPEC)),
    always(3, "status", Type::Message(NODE_STATUS)),
];

pub(in crate::apiserver) const SERVICE_CIDR: Message = &[
    always(1, "metadata", Type::Message(OBJECT_META)),
    always(2, "spec", Type::Message(&[each(1, "cidrs", Text)])),
    always(3, "status", Type::Message(&[each(1, "conditions", Type::Message(CONDITION))])),
];

const EVENT_SERIES: Message = &[always(1, "count", Int), always(2, "lastObservedTime", MicroTime)];

pub(in crate::apiserver) const EVENT: Message = &[
    always(1, "metadata", Type::Message(OBJECT_META)),
    always(2, "eventTime", MicroTime),
    if_set(3, "series", Type::Message(EVENT_SERIES)),
    always(4, "reportingController", Text),
    always(5, "reportingInstance", Text),
    always(6, "action", Text),
    always(7, "reason", Text),
    always(8, "regarding", Type::Message(OBJECT_REFERENCE)),
    if_set(9, "related", Type::Message(OBJECT_REFERENCE)),
    always(10, "note", Text),
    always(11, "type", Text),
    always(12, "deprecatedSource", Type::Message(&[always(1, "component", Text), always(2, "host", Text)])),
    always(13, "deprecatedFirstTimestamp", Time),
    always(14, "deprecatedLastTimestamp", Time),
    always(15, "deprecatedCount", Int),
];
