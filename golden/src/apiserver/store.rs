//! The objects of the cluster with their history, and one resourceVersion for all collections, as in etcd.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use tokio::sync::mpsc::UnboundedSender;

use super::event::{Command, Event, Key};
use super::object::Object;
use super::resource::Resource;
use super::selector::Filter;
use super::status::Status;

type Objects = BTreeMap<Key, Object>;

/// A page of a collection at `version`.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Object>,
    /// The last key of this page and the number of objects after it, if any.
    pub(super) more: Option<(Key, usize)>,
}

/// The start of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchStart {
    /// From the existing objects on.
    Everything,
    /// From the events after this version on.
    After(u64),
}

/// The objects and events that a new watch sends at once.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) version: u64,
    pub(super) existing: Vec<Object>,
    pub(super) events: Vec<Event>,
}

#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    keep: usize,
    collections: BTreeMap<&'static str, Collection>,
    watches: Vec<WatchHandle>,
    next_watch: u64,
}

#[derive(Debug, Default)]
struct Collection {
    objects: Objects,
    history: VecDeque<Event>,
    /// The newest version that is no longer available.
    compacted: u64,
}

#[derive(Debug)]
struct WatchHandle {
    id: u64,
    kind: &'static str,
    commands: UnboundedSender<Command>,
}

impl Store {
    pub(super) fn new() -> Self {
        let collections = Resource::all().map(|resource| (resource.kind, Collection::default())).collect();
        Self { version: 1, keep: 100_000, collections, watches: Vec::new(), next_watch: 0 }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, resource: &Resource, key: &Key) -> Option<&Object> {
        self.collections[resource.kind].objects.get(key)
    }

    pub(super) fn values(&self, resource: &Resource) -> Vec<serde_json::Value> {
        self.collections[resource.kind].objects.values().map(Object::value).collect()
    }

    /// Puts (`Some`) or deletes an object and notifies the watches.
    ///
    /// A deletion event contains the last content with the version of the deletion.
    pub(super) fn change(&mut self, resource: &Resource, key: Key, new: Option<&Object>) -> u64 {
        self.version += 1;
        let version = self.version;
        let new = new.map(|object| object.at(version));
        let collection = self.collection(resource.kind);
        let old = match &new {
            Some(object) => collection.objects.insert(key.clone(), object.clone()),
            None => collection.objects.remove(&key),
        };
        let event = Event { version, key, old, new };
        collection.history.push_back(event.clone());
        self.keep(self.keep);
        self.command(Some(resource.kind), &Command::Event(event));
        version
    }

    /// Sets the number of events kept for each collection.
    pub(super) fn keep(&mut self, events: usize) {
        self.keep = events;
        for collection in self.collections.values_mut() {
            while collection.history.len() > events
                && let Some(forgotten) = collection.history.pop_front()
            {
                collection.compacted = forgotten.version;
            }
        }
    }

    /// Expires all history; open watches continue.
    pub(super) fn expire(&mut self) {
        // A new version, so that even the one a client has just listed is too old.
        self.version += 1;
        let version = self.version;
        for collection in self.collections.values_mut() {
            collection.history.clear();
            collection.compacted = version;
        }
    }

    /// Stores an object with its version, without notifying the watches.
    pub(super) fn restore(&mut self, resource: &Resource, key: Key, object: Object) {
        self.collection(resource.kind).objects.insert(key, object);
    }

    /// Continues with another version and without history.
    pub(super) fn set_version(&mut self, version: u64) {
        self.version = version;
        for collection in self.collections.values_mut() {
            collection.history.clear();
            collection.compacted = version.min(collection.compacted);
        }
    }

    /// Encodes all objects of a collection.
    pub(super) fn encode(&self, resource: &Resource) {
        for object in self.collections[resource.kind].objects.values() {
            object.message(resource);
        }
    }

    /// At most `limit` objects after `from`, as of `version`.
    pub(super) fn page(
        &self,
        resource: &Resource,
        filter: &Filter,
        version: u64,
        from: Option<&Key>,
        limit: usize,
    ) -> Result<Page, Status> {
        let objects = self.objects_at(resource, version)?;
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let mut matching = objects.range::<Key, _>((from, Bound::Unbounded)).filter(|(_, o)| o.matches(filter));
        let mut last = None;
        let mut items = Vec::new();
        for (key, object) in matching.by_ref().take(limit) {
            last = Some(key);
            items.push(object.clone());
        }
        let left = matching.count();
        let more = last.filter(|_| left > 0).map(|key| (key.clone(), left));
        Ok(Page { version, items, more })
    }

    /// Opens a watch. Later events arrive through `commands`, each exactly once.
    pub(super) fn watch(
        &mut self,
        resource: &Resource,
        filter: &Filter,
        start: WatchStart,
        commands: UnboundedSender<Command>,
    ) -> Result<(u64, Backlog), Status> {
        let mut backlog = Backlog { version: self.version, existing: Vec::new(), events: Vec::new() };
        match start {
            WatchStart::Everything => {
                backlog.existing = self.page(resource, filter, self.version, None, usize::MAX)?.items;
            }
            WatchStart::After(version) => {
                let collection = self.collection_since(resource, version)?;
                backlog.events = collection.history.iter().filter(|event| event.version > version).cloned().collect();
            }
        }
        self.next_watch += 1;
        self.watches.push(WatchHandle { id: self.next_watch, kind: resource.kind, commands });
        Ok((self.next_watch, backlog))
    }

    pub(super) fn close_watch(&mut self, id: u64) {
        self.watches.retain(|watch| watch.id != id);
    }

    pub(super) fn watching(&self, kind: &str) -> usize {
        self.watches.iter().filter(|watch| watch.kind == kind).count()
    }

    /// Sends a command to all watches, or to those of one kind, after all earlier commands.
    pub(super) fn command(&self, kind: Option<&str>, command: &Command) {
        for watch in self.watches.iter().filter(|watch| kind.is_none_or(|kind| kind == watch.kind)) {
            // A watch that is ending no longer receives.
            let _ = watch.commands.send(command.clone());
        }
    }

    fn objects_at(&self, resource: &Resource, version: u64) -> Result<Cow<'_, Objects>, Status> {
        let collection = self.collection_since(resource, version)?;
        let mut objects = Cow::Borrowed(&collection.objects);
        for event in collection.history.iter().rev().take_while(|event| event.version > version) {
            match &event.old {
                Some(old) => objects.to_mut().insert(event.key.clone(), old.clone()),
                None => objects.to_mut().remove(&event.key),
            };
        }
        Ok(objects)
    }

    fn collection_since(&self, resource: &Resource, version: u64) -> Result<&Collection, Status> {
        let collection = &self.collections[resource.kind];
        let known = version >= collection.compacted;
        known.then_some(collection).ok_or_else(|| Status::too_old(version, collection.compacted))
    }

    fn collection(&mut self, kind: &str) -> &mut Collection {
        self.collections.get_mut(kind).expect("there is a collection for every resource")
    }
}
