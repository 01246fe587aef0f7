//! Lists: contents, versions, pages, single objects, what is not served.

use golden::apiserver::ApiServer;
use serde_json::{Value, json};

use crate::client::{ask, connect, get, names, open, send};
use crate::{NODES, SERVICES, SLICES, node, service};

#[test]
fn a_list_shows_what_was_applied_at_the_present_version() {
    let api = ApiServer::start();
    let first = api.apply(service("web"));
    let second = api.apply(service("api"));
    let (code, list) = get(&api, SERVICES);
    assert_eq!((code, &list["kind"], &list["apiVersion"]), (200, &json!("ServiceList"), &json!("v1")));
    assert_eq!(list["metadata"], json!({ "resourceVersion": second.to_string() }));
    assert_eq!(names(&list), ["api", "web"]);
    let web = &list["items"][1];
    assert_eq!(web["metadata"]["resourceVersion"], first.to_string());
    assert!(web["metadata"]["uid"].is_string() && web["metadata"]["creationTimestamp"].is_string());
    assert_eq!((&web["kind"], &web["spec"]["clusterIP"]), (&Value::Null, &json!("10.96.0.20")), "as typed lists do");
}

#[test]
fn every_collection_is_there_from_the_beginning() {
    let api = ApiServer::start();
    let servicecidrs = "/apis/networking.k8s.io/v1/servicecidrs";
    let kinds = [(NODES, "NodeList"), (SLICES, "EndpointSliceList"), (servicecidrs, "ServiceCIDRList")];
    for (path, kind) in kinds {
        let (code, list) = get(&api, path);
        assert_eq!((code, &list["kind"], &list["items"]), (200, &json!(kind), &json!([])));
    }
}

#[test]
fn replacing_keeps_the_identity_and_deleting_needs_an_object() {
    let api = ApiServer::start();
    api.apply(service("web"));
    let before = api.get("Service", "default", "web").expect("it is there");
    api.apply(service("web"));
    let after = api.get("Service", "default", "web").expect("it is there");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_ne!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    api.delete("Service", "default", "web");
    assert_eq!(api.get("Service", "default", "web"), None);
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| api.delete("Service", "default", "web")));
    assert!(again.is_err());
    assert_eq!(names(&get(&api, SERVICES).1), [""; 0], "the server lives on");
}

#[test]
fn pages_show_one_version_even_if_the_collection_changes_between_them() {
    let api = ApiServer::start();
    for name in ["a", "b", "c", "d", "e"] {
        api.apply(service(name));
    }
    let (_, first) = get(&api, &format!("{SERVICES}?limit=2"));
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    api.delete("Service", "default", "c");
    api.apply(service("aa"));
    api.apply(service("dd"));
    let next = |page: &Value| {
        let token = page["metadata"]["continue"].as_str().expect("a token").to_owned();
        get(&api, &format!("{SERVICES}?limit=2&continue={token}")).1
    };
    let second = next(&first);
    assert_eq!(names(&second), ["c", "d"]);
    let third = next(&second);
    assert_eq!(names(&third), ["e"]);
    assert_eq!(third["metadata"]["continue"], Value::Null);
    assert_eq!(third["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
}

#[test]
fn a_continued_list_expires_with_the_history() {
    let api = ApiServer::start();
    api.apply(service("a"));
    api.apply(service("b"));
    let (_, first) = get(&api, &format!("{SERVICES}?limit=1"));
    api.expire_history();
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let (code, status) = get(&api, &format!("{SERVICES}?limit=1&continue={token}"));
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
}

#[test]
fn the_limit_is_ignored_for_any_version() {
    let api = ApiServer::start();
    api.apply(service("a"));
    api.apply(service("b"));
    let (_, list) = get(&api, &format!("{SERVICES}?limit=1&resourceVersion=0"));
    assert_eq!((names(&list), &list["metadata"]["continue"]), (vec!["a", "b"], &Value::Null));
}

#[test]
fn resource_version_match_is_obeyed() {
    let api = ApiServer::start();
    let one = api.apply(service("a"));
    let two = api.apply(service("b"));
    let list = |query: &str| get(&api, &format!("{SERVICES}?{query}"));
    let (_, exact) = list(&format!("resourceVersion={one}&resourceVersionMatch=Exact"));
    assert_eq!((names(&exact), &exact["metadata"]["resourceVersion"]), (vec!["a"], &json!(one.to_string())));
    let (_, newer) = list(&format!("resourceVersion={one}&resourceVersionMatch=NotOlderThan"));
    assert_eq!((names(&newer), &newer["metadata"]["resourceVersion"]), (vec!["a", "b"], &json!(two.to_string())));
    let (code, future) = list(&format!("resourceVersion={}", two + 1));
    assert_eq!((code, &future["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
    assert_eq!(list("resourceVersionMatch=Exact").0, 422);
    assert_eq!(list("resourceVersion=x").0, 400);
    assert_eq!(list("sendInitialEvents=true").0, 422);
    assert_eq!(list("continue=nonsense").0, 400);
    api.expire_history();
    assert_eq!(list(&format!("resourceVersion={one}&resourceVersionMatch=Exact")).0, 410);
}

#[test]
fn namespaces_and_single_objects() {
    let api = ApiServer::start();
    api.apply(service("web"));
    let mut other = service("other");
    other["metadata"]["namespace"] = json!("kube-system");
    api.apply(other);
    api.apply(node("n1"));
    assert_eq!(names(&get(&api, "/api/v1/namespaces/kube-system/services").1), ["other"]);
    let (code, web) = get(&api, "/api/v1/namespaces/default/services/web");
    assert_eq!((code, &web["kind"], &web["metadata"]["name"]), (200, &json!("Service"), &json!("web")));
    assert_eq!(get(&api, "/api/v1/nodes/n1").1["apiVersion"], "v1");
    let (code, status) = get(&api, "/api/v1/nodes/n2");
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    assert_eq!(get(&api, "/api/v1/pods").0, 404);
    assert_eq!(open(&api, "/healthz").rest().expect("a body"), b"ok");
}

#[test]
fn yaml_documents_and_lists_are_loaded() {
    let api = ApiServer::start();
    let path = std::env::temp_dir().join(format!("apiserver-{}.yaml", std::process::id()));
    let text = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\n---\nkind: List\nitems:\n\
                - {kind: Service, metadata: {name: web, namespace: shop}, spec: {ports: [{port: 80}]}}\n\
                - {kind: EndpointSlice, metadata: {name: web-1, namespace: shop}, endpoints: null}\n";
    std::fs::write(&path, text).expect("a temporary file");
    api.load_yaml(&path);
    std::fs::remove_file(&path).expect("it is there");
    let web = api.get("Service", "shop", "web").expect("it was loaded");
    assert_eq!(web["spec"]["ports"][0]["port"], 80);
    assert_eq!((names(&get(&api, NODES).1), names(&get(&api, SLICES).1)), (vec!["n1"], vec!["web-1"]));
}

#[test]
fn requests_are_logged_as_they_came() {
    let api = ApiServer::start();
    let headers = "User-Agent: kube-proxy/v1.36.2\r\nAccept: application/json\r\nAuthorization: Bearer abc\r\n";
    let path = format!("{SERVICES}?labelSelector=%21a%2Cb+in+%28c%29&watch=false");
    let mut response = ask(connect(&api), &path, headers).expect("an answer");
    response.rest().expect("a body");
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let post = format!("POST {events} HTTP/1.1\r\nContent-Length: 8\r\n\r\n{{\"a\":1}}\n");
    let refused = send(response.into_stream(), &post).expect("the connection is reused");
    assert_eq!(refused.code, 422, "it has no name");
    let requests = api.requests();
    let [list, event] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((list.method.as_str(), list.path.as_str(), list.is_watch()), ("GET", SERVICES, false));
    assert_eq!(list.query, "labelSelector=%21a%2Cb+in+%28c%29&watch=false");
    assert_eq!(list.param("labelSelector").as_deref(), Some("!a,b in (c)"));
    assert_eq!((list.user_agent.as_str(), list.accept.as_str()), ("kube-proxy/v1.36.2", "application/json"));
    assert_eq!(list.authorization.as_deref(), Some("Bearer abc"));
    assert_eq!((event.method.as_str(), event.path.as_str(), event.body.as_str()), ("POST", events, "{\"a\":1}\n"));
    api.clear_requests();
    assert_eq!(api.requests(), []);
}

#[test]
fn kubeconfig_has_the_address_and_the_token() {
    let api = ApiServer::start();
    api.require_token(Some("s3cret"));
    let dir = std::env::temp_dir().join(format!("apiserver-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    let text = std::fs::read_to_string(api.kubeconfig(&dir)).expect("it was written");
    std::fs::remove_dir_all(&dir).expect("it is there");
    let config: Value = serde_saphyr::from_str(&text).expect("YAML");
    assert_eq!(config["clusters"][0]["cluster"]["server"], api.url());
    assert_eq!(config["users"][0]["user"]["token"], "s3cret");
    assert_eq!(config["current-context"], config["contexts"][0]["name"]);
    assert_eq!(open(&api, NODES).code, 401);
    let authorized = ask(connect(&api), NODES, "Authorization: Bearer s3cret\r\n").expect("an answer");
    assert_eq!(authorized.code, 200);
}
