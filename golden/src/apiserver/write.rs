//! Handles writes: creations and merge patches (RFC 7386). Only the name is validated.

use serde_json::Value;

use super::cluster::put;
use super::object::Object;
use super::resource::Target;
use super::status::Status;
use super::store::Store;

/// Creates the object in the body.
pub(super) fn create(store: &mut Store, target: &Target<'_>, body: &str) -> Result<Object, Status> {
    let mut object = parse(body)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(Status::nameless());
    }
    let key = (target.namespace.unwrap_or_default().to_owned(), name);
    if store.get(target.resource, &key).is_some() {
        return Err(Status::exists(target.resource.plural, &key.1));
    }
    strip(&mut object);
    put(store, target.resource, key.clone(), object);
    found(store, target, &key)
}

/// Applies a merge patch.
pub(super) fn patch(store: &mut Store, target: &Target<'_>, name: &str, body: &str) -> Result<Object, Status> {
    let change = parse(body)?;
    let key = (target.namespace.unwrap_or_default().to_owned(), name.to_owned());
    let mut object = found(store, target, &key)?.value();
    merge(&mut object, change);
    strip(&mut object);
    put(store, target.resource, key.clone(), object);
    found(store, target, &key)
}

fn found(store: &Store, target: &Target<'_>, key: &(String, String)) -> Result<Object, Status> {
    store.get(target.resource, key).cloned().ok_or_else(|| Status::not_found(target.resource.plural, &key.1))
}

fn parse(body: &str) -> Result<Value, Status> {
    let value: Value = serde_json::from_str(body).map_err(|error| Status::bad_request(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(Status::bad_request("the body is no object")) }
}

/// Removes `kind` and `apiVersion`, which objects are stored without.
fn strip(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
}

fn merge(base: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *base = change;
        return;
    };
    if !base.is_object() {
        *base = Value::Object(serde_json::Map::new());
    }
    for (name, value) in change {
        let Some(fields) = base.as_object_mut() else { return };
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}
