//! The synthetic load.

use std::collections::BTreeSet;

use golden::apiserver::ApiServer;
use serde_json::json;

use crate::client::{get, names, open};
use crate::{SERVICES, SLICES};

#[test]
fn services_and_their_slices_fit_together() {
    let api = ApiServer::start();
    api.load_synthetic(300, 5);
    let (_, services) = get(&api, &format!("{SERVICES}?fieldSelector=spec.clusterIP!=None&labelSelector=!x"));
    let (_, slices) = get(&api, &format!("{SLICES}?labelSelector=!service.kubernetes.io/headless"));
    assert_eq!((names(&services).len(), names(&slices).len()), (300, 300));
    let mut ips = BTreeSet::new();
    for (service, slice) in items(&services).iter().zip(items(&slices)) {
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], service["metadata"]["name"]);
        assert_eq!(slice["metadata"]["namespace"], service["metadata"]["namespace"]);
        assert_eq!((&service["spec"]["ports"][0]["port"], &slice["ports"][0]["name"]), (&json!(80), &json!("http")));
        ips.insert(service["spec"]["clusterIP"].to_string());
        for endpoint in slice["endpoints"].as_array().expect("endpoints") {
            ips.insert(endpoint["addresses"][0].to_string());
            assert_eq!(endpoint["conditions"]["ready"], true);
            assert!(endpoint["nodeName"].is_string() && endpoint["zone"].is_string());
        }
    }
    assert_eq!(ips.len(), 300 + 300 * 5, "every address is there once");
}

fn items(list: &serde_json::Value) -> &[serde_json::Value] {
    list["items"].as_array().expect("items")
}

#[test]
fn a_synthetic_object_can_be_changed_and_deleted_like_any_other() {
    let api = ApiServer::start();
    api.load_synthetic(10, 2);
    let version = api.version();
    let mut watch = open(&api, &format!("{SLICES}?watch=true&resourceVersion={version}"));
    let mut slice = api.get("EndpointSlice", "scale", "svc-00003-x7k2p").expect("it is there");
    slice["endpoints"].as_array_mut().expect("endpoints").pop();
    api.apply(slice);
    let (what, object) = watch.event();
    assert_eq!((what.as_str(), object["endpoints"].as_array().map(Vec::len)), ("MODIFIED", Some(1)));
    let gone = api.delete("EndpointSlice", "scale", "svc-00004-x7k2p");
    let (what, object) = watch.event();
    assert_eq!((what.as_str(), &object["metadata"]["resourceVersion"]), ("DELETED", &json!(gone.to_string())));
    assert_eq!(object["endpoints"].as_array().map(Vec::len), Some(2));
    assert_eq!(items(&get(&api, SLICES).1).len(), 9);
}

#[test]
fn a_load_reaches_watches_that_are_already_open() {
    let api = ApiServer::start();
    let mut watch = open(&api, &format!("{SERVICES}?watch=true"));
    api.wait_for_watches("Service", 1);
    api.load_synthetic(2, 1);
    assert_eq!([watch.brief(), watch.brief()], ["ADDED svc-00000", "ADDED svc-00001"]);
}

#[test]
fn a_slice_is_as_large_as_a_real_one() {
    let api = ApiServer::start();
    api.load_synthetic(1, 100);
    let size = open(&api, SLICES).rest().expect("a body").len();
    assert!((25_000..45_000).contains(&size), "{size} bytes");
}
