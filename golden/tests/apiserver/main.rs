//! Tests of the API server for tests: its answers equal kube-apiserver's, and its faults work.

mod client;
mod encodings;
mod faults;
mod injections;
mod lists;
mod recorded;
mod scale;
mod selectors;
mod watches;
mod writes;

use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "clusterIP": "10.96.0.20", "ports": [{ "name": "http", "port": 80 }] },
    })
}

fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}
