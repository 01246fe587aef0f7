//! Changes the cluster: objects as JSON or YAML, or a synthetic load.
//!
//! Each change gets a new resourceVersion.

use std::path::Path;

use serde_json::{Value, json};

use super::ApiServer;
use super::object::Object;
use super::resource::Resource;
use super::store::Store;
use super::synthetic::{NAMESPACE, Synthetic};

impl ApiServer {
    /// Creates or replaces an object, or every item of a `List`, and returns the new resourceVersion.
    ///
    /// An unchanged object gets a new version too.
    ///
    /// # Panics
    /// If the kind is not served or the name is missing. Nothing else is validated.
    #[allow(clippy::must_use_candidate, clippy::needless_pass_by_value)] // made for `apply(json!(…))`
    #[track_caller]
    pub fn apply(&self, mut object: Value) -> u64 {
        if let Some(Value::Array(items)) = object.get_mut("items").map(Value::take) {
            for item in items {
                self.apply(item);
            }
            return self.version();
        }
        let resource = served(object["kind"].as_str().unwrap_or_default());
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        assert!(!name.is_empty(), "an object without a name: {object}");
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let fields = object.as_object_mut().expect("it has a kind, so it is an object");
        fields.remove("kind");
        fields.remove("apiVersion");
        let key = (if resource.namespaced { namespace } else { String::new() }, name);
        put(&mut self.shared.state().store, resource, key, object)
    }

    /// Restores the items of a list from a real server with their versions, and continues from the list's version.
    ///
    /// # Panics
    /// If the kind is not served or the object is not a list.
    #[track_caller]
    pub fn restore(&self, list: &Value) {
        let kind = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).unwrap_or_default();
        let resource = served(kind);
        let store = &mut self.shared.state().store;
        for item in list["items"].as_array().into_iter().flatten() {
            let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default().to_owned();
            store.restore(resource, (text("namespace"), text("name")), Object::stored(item.clone()));
        }
        let version = list["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok());
        store.set_version(version.expect("a list has a resourceVersion"));
    }

    /// Continues from an older version with the current objects, like a server whose etcd was restored from a backup.
    ///
    /// Clients that saw a newer version get `ResourceVersionTooLarge`. Open watches continue.
    pub fn rewind(&self, version: u64) {
        self.shared.state().store.set_version(version);
    }

    /// Encodes all objects in protobuf now rather than in the first answer, for measurements.
    pub fn encode_all(&self) {
        let store = &self.shared.state().store;
        Resource::all().for_each(|resource| store.encode(resource));
    }

    /// All current objects of a kind.
    ///
    /// # Panics
    /// If the kind is not served.
    #[must_use]
    #[track_caller]
    pub fn all(&self, kind: &str) -> Vec<Value> {
        self.shared.state().store.values(served(kind))
    }

    /// Deletes an object and returns the resourceVersion of the deletion.
    ///
    /// The namespace of cluster-scoped kinds is ignored.
    ///
    /// # Panics
    /// If the object does not exist.
    #[allow(clippy::must_use_candidate)]
    #[track_caller]
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> u64 {
        let resource = served(kind);
        let key = key(resource, namespace, name);
        let store = &mut self.shared.state().store;
        assert!(store.get(resource, &key).is_some(), "there is no {kind} {namespace}/{name} to delete");
        store.change(resource, key, None)
    }

    /// The current object, to be changed and applied.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = served(kind);
        let object = self.shared.state().store.get(resource, &key(resource, namespace, name)).cloned()?;
        let mut value = object.value();
        value["kind"] = json!(resource.kind);
        value["apiVersion"] = json!(resource.api_version());
        Some(value)
    }

    /// The current resourceVersion.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.state().store.version()
    }

    /// Applies every non-empty document of a YAML file.
    ///
    /// # Panics
    /// If the file cannot be read or contains kinds that are not served.
    #[track_caller]
    pub fn load_yaml(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            self.apply(document);
        }
    }

    /// Creates this many ClusterIP Services (`svc-00000`… in namespace `scale`, IPv4, port `http` 80/TCP).
    ///
    /// Each has one EndpointSlice (`svc-00000-x7k2p`…) of ready endpoints. Their JSON is generated whenever they are
    /// sent.
    ///
    /// # Panics
    /// If there are more than a million Services or eight million endpoints.
    #[track_caller]
    pub fn load_synthetic(&self, services: u32, endpoints_per_service: u32) {
        let pods = u64::from(services) * u64::from(endpoints_per_service);
        assert!(services <= 1_000_000 && pods <= 8_000_000, "{services} services, {pods} endpoints: too many");
        let (services_resource, slices_resource) = (served("Service"), served("EndpointSlice"));
        let store = &mut self.shared.state().store;
        for service in 0..services {
            for (resource, endpoints) in [(services_resource, None), (slices_resource, Some(endpoints_per_service))] {
                let synthetic = Synthetic { service, endpoints, version: 0 };
                let key = (NAMESPACE.to_owned(), synthetic.name());
                store.change(resource, key, Some(&Object::synthetic(synthetic)));
            }
        }
    }
}

/// Stores an object without `kind` and `apiVersion`, with its UID or a new one.
pub(super) fn put(store: &mut Store, resource: &Resource, key: (String, String), mut object: Value) -> u64 {
    if resource.namespaced {
        object["metadata"]["namespace"] = json!(key.0);
    }
    let before = store.get(resource, &key).map(|old| old.value()["metadata"].clone()).unwrap_or_default();
    let given = |field: &str, first: Value| if before[field].is_null() { first } else { before[field].clone() };
    let identity = [
        ("uid", given("uid", json!(format!("00000000-0000-4000-8000-{:012x}", store.version() + 1)))),
        ("creationTimestamp", given("creationTimestamp", json!("2026-01-15T09:30:00Z"))),
    ];
    for (field, value) in identity {
        if object["metadata"][field].is_null() {
            object["metadata"][field] = value;
        }
    }
    store.change(resource, key, Some(&Object::stored(object)))
}

#[track_caller]
pub(super) fn served(kind: &str) -> &'static Resource {
    Resource::of_kind(kind).unwrap_or_else(|| panic!("kind {kind:?} is not served"))
}

fn key(resource: &Resource, namespace: &str, name: &str) -> (String, String) {
    (if resource.namespaced { namespace.to_owned() } else { String::new() }, name.to_owned())
}
