//! The Services whose labels match the selector of `serviceMetrics`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::core::{Selector, SelectorExt};
use proxier::model::NamespacedName;
use proxier::track::{Change, Kind, Object, ObjectKey};

use crate::config::label_selector;

/// The Services that a label selector selects, kept up to date by the source of objects.
///
/// The kernel's counters know Services by name only, so the reader of counters looks the names up here. Only names of
/// selected Services are kept.
#[derive(Clone)]
pub struct SelectedServices(Arc<SelectedState>);

struct SelectedState {
    selector: Selector,
    /// Whether each was delivered since the last list of Services began.
    services: Mutex<HashMap<NamespacedName, bool>>,
}

impl SelectedServices {
    /// The Services of a selector, none before the source delivers them; `None` for an empty selector, which selects all.
    ///
    /// # Errors
    /// What is wrong with the selector.
    pub fn new(selector: &str) -> Result<Option<Self>, String> {
        let selector = label_selector::parse(selector)?;
        let state = SelectedState { selector, services: Mutex::default() };
        Ok((!state.selector.selects_all()).then(|| Self(Arc::new(state))))
    }

    /// Whether the Service is selected.
    #[must_use]
    pub fn contains(&self, service: &NamespacedName) -> bool {
        self.services().contains_key(service)
    }

    /// Whether an object's labels match; `None` for other kinds, and for a Service with an invalid field.
    #[must_use]
    pub fn matches(&self, object: &Object) -> Option<bool> {
        object.service_labels().map(|labels| self.0.selector.matches(labels))
    }

    /// Takes what [`matches`](Self::matches) said of a delivered object. With `None` a Service stays what it was.
    pub fn set(&self, key: &ObjectKey, matches: Option<bool>) {
        let ObjectKey { kind: Kind::Service, name } = key else { return };
        let mut services = self.services();
        match matches {
            Some(true) => _ = services.insert(name.clone(), true),
            Some(false) => _ = services.remove(name),
            None => services.get_mut(name).into_iter().for_each(|listed| *listed = true),
        }
    }

    /// Forgets an object that was deleted.
    pub fn remove(&self, key: &ObjectKey) {
        if key.kind == Kind::Service {
            self.services().remove(&key.name);
        }
    }

    /// Follows the lists of Services: those that a whole list does not have were deleted before it, without an event.
    pub fn mark(&self, change: &Change) {
        match change {
            Change::Listing(Kind::Service) => self.services().values_mut().for_each(|listed| *listed = false),
            Change::Listed(Kind::Service) => self.services().retain(|_, listed| *listed),
            _ => {}
        }
    }

    fn services(&self) -> MutexGuard<'_, HashMap<NamespacedName, bool>> {
        self.0.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, team: &str) -> Object {
        let service = json!({"metadata": {"namespace": "a", "name": name, "labels": {"team": team}}});
        Object::from_value(Kind::Service, service).expect("a Service")
    }

    fn deliver(selected: &SelectedServices, object: &Object) {
        selected.set(object.key(), selected.matches(object));
    }

    fn names(selected: &SelectedServices) -> String {
        let mut names: Vec<_> = selected.services().keys().map(|service| service.name.to_string()).collect();
        names.sort_unstable();
        names.join(" ")
    }

    #[test]
    fn services_are_selected_as_long_as_their_labels_match() {
        let selected = SelectedServices::new("team in (shop, pay)").expect("a selector").expect("it selects some");
        for (name, team) in [("web", "shop"), ("api", "pay"), ("other", "x")] {
            deliver(&selected, &service(name, team));
        }
        assert_eq!(names(&selected), "api web");
        assert!(
            selected.contains(&NamespacedName::new("a", "web")) && !selected.contains(&NamespacedName::new("b", "web"))
        );
        deliver(&selected, &service("web", "x"));
        assert_eq!(names(&selected), "api");
        deliver(&selected, &service("other", "shop"));
        selected.remove(&ObjectKey { kind: Kind::EndpointSlice, name: NamespacedName::new("a", "api") });
        assert_eq!(names(&selected), "api other");
        selected.remove(&service("api", "").key().clone());
        assert_eq!(names(&selected), "other");
    }

    #[test]
    fn services_that_a_list_does_not_have_are_forgotten() {
        let selected = SelectedServices::new("team=shop").expect("a selector").expect("it selects some");
        ["gone", "kept"].iter().for_each(|name| deliver(&selected, &service(name, "shop")));
        selected.mark(&Change::Listing(Kind::Service));
        let invalid = json!({"metadata": {"namespace": "a", "name": "kept"}, "spec": {"ports": 1}});
        deliver(&selected, &Object::from_value(Kind::Service, invalid).expect("a Service with a name"));
        selected.mark(&Change::ListedInPart(Kind::Service));
        assert_eq!(names(&selected), "gone kept");
        selected.mark(&Change::Listed(Kind::Service));
        assert_eq!(names(&selected), "kept");
    }

    #[test]
    fn an_empty_selector_selects_all() {
        assert!(SelectedServices::new(" ").expect("a selector").is_none());
        assert!(SelectedServices::new("team=a b").is_err());
    }
}
