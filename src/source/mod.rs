//! Where objects come from: an API server, or files.
//!
//! In: objects and what happens to them. Out: [`Change`]s to the families' proxiers. Must not know: rules.
//! Objects are turned into compact values at once and dropped.

mod api;
mod files;
pub mod objects;
mod reflector;
pub mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use netfilter::IpFamily;
use proxier::mailbox::Message;
use proxier::mailbox::Sender;
use proxier::model::{NamespacedName, NodeInfo};
use proxier::track::{Change, Kind, Object, ObjectKey, Translation, Translator};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, warn};

use crate::cli::SourceFlags;
use crate::client::ApiClient;
use crate::config::ValidatedConfig;
use crate::health::Health;

/// The proxiers of the families that this host has.
#[derive(Clone, Debug, Default)]
pub struct FamilySenders(Vec<(IpFamily, Sender)>);

impl FamilySenders {
    /// Adds a family's proxier.
    pub fn insert(&mut self, family: IpFamily, sender: Sender) {
        self.0.push((family, sender));
    }

    /// Which there are.
    #[must_use]
    pub fn known(&self) -> Vec<IpFamily> {
        self.0.iter().map(|(family, _)| *family).collect()
    }

    /// Tells all of them.
    pub fn send_all(&self, change: &Change) {
        for (family, _) in &self.0 {
            self.send(*family, change.clone().into());
        }
    }

    /// Tells one of them something, or asks it.
    pub fn send(&self, family: IpFamily, message: Message) {
        if let Some((_, sender)) = self.0.iter().find(|(of, _)| *of == family) {
            // A proxier that ended is noticed where its thread is waited for.
            sender.send(message);
        }
    }
}

/// What the source reports about this node's Node object.
#[derive(Clone, Debug)]
pub enum NodeUpdate {
    /// Its current state.
    Applied(NodeInfo),
    /// It was deleted.
    Deleted,
    /// A list of Nodes begins or ends.
    ListProgress(Change),
    /// Objects of this kind cannot be read at the moment, and why.
    Failed(Kind, String),
}

/// Takes objects of any kind to the families.
pub struct Sink {
    families: FamilySenders,
    translator: Translator,
    /// Whoever watches our own Node.
    node: UnboundedSender<NodeUpdate>,
    node_name: String,
    health: Arc<Health>,
}

/// An object, as far as it matters.
struct DecodedObject {
    key: ObjectKey,
    result: Result<Translation, String>,
    /// The file and document, to begin messages with; empty of an API server's.
    origin: String,
}

impl Sink {
    fn new(
        settings: &ValidatedConfig,
        families: FamilySenders,
        node: UnboundedSender<NodeUpdate>,
        health: Arc<Health>,
    ) -> Self {
        let node_name = settings.proxier.node_name.clone();
        let translator = Translator::new(&node_name, settings.proxier.hide_external_ips);
        Self { families, translator, node, node_name, health }
    }

    /// Takes the current state of an object. One with an invalid field is named in the log and skipped: what is known
    /// of it stays.
    fn apply(&mut self, object: Object) {
        let key = object.key().clone();
        let result = self.translator.applied(object).map_err(|error| error.to_string());
        self.deliver(DecodedObject { key, result, origin: String::new() });
    }

    /// Decodes an object of a file, `origin`. The families do not get it yet.
    fn decode(&mut self, key: ObjectKey, object: Value, origin: String) -> DecodedObject {
        let decoded = Object::from_value(key.kind, object).map_err(|error| error.to_string());
        let result = decoded.and_then(|object| self.translator.applied(object).map_err(|error| error.to_string()));
        // Most objects are in order, and there may be many: only the others need it.
        let in_order = result.as_ref().is_ok_and(|translated| translated.problems.is_empty());
        let origin = if in_order { String::new() } else { format!("{origin}: ") };
        DecodedObject { key, result, origin }
    }

    /// Tells of an object that exists now.
    fn deliver(&self, DecodedObject { key, result, origin }: DecodedObject) {
        match result {
            Ok(translated) => {
                if let Some(eligible) = translated.node_eligible {
                    self.health.set_node_eligible(eligible);
                }
                for problem in &translated.problems {
                    warn!("{origin}{problem}");
                }
                match translated.changes.first() {
                    // The same in all families.
                    Some((_, Change::Node(node))) => self.send_node_update(NodeUpdate::Applied(node.clone())),
                    _ => self.tell(translated),
                }
            }
            Err(problem) => {
                error!("{origin}{problem}");
                self.tell(Translation::everywhere(&Change::Kept(key)));
            }
        }
    }

    /// An object is gone.
    fn delete(&self, key: &ObjectKey) {
        if key.kind == Kind::Node && *key.name.name == *self.node_name {
            self.send_node_update(NodeUpdate::Deleted);
        }
        self.tell(Translator::deleted(key));
    }

    /// A list begins or ends.
    fn mark(&self, change: &Change) {
        match change {
            Change::Listing(Kind::Node) | Change::Listed(Kind::Node) | Change::ListedInPart(Kind::Node) => {
                self.send_node_update(NodeUpdate::ListProgress(change.clone()))
            }
            _ => self.tell(Translation::everywhere(change)),
        }
    }

    /// Objects of a kind cannot be read at the moment.
    fn trouble(&self, kind: Kind, said: &str) {
        self.send_node_update(NodeUpdate::Failed(kind, said.to_owned()));
    }

    fn send_node_update(&self, news: NodeUpdate) {
        // Whoever watches it ends only when everything does.
        let _ = self.node.send(news);
    }

    fn tell(&self, translated: Translation) {
        for (family, change) in translated.changes {
            self.families.send(family, change.into());
        }
    }
}

/// A source at work. It ends only with an error, for the log.
pub type Source = Pin<Box<dyn Future<Output = String> + Send>>;

/// Starts what the flags name: with a client the API server, without one `--objects`. `only`: of the Services this one
/// and its slices alone.
///
/// # Errors
/// If the flags name neither.
pub fn start(
    flags: &SourceFlags,
    settings: &ValidatedConfig,
    families: FamilySenders,
    node: UnboundedSender<NodeUpdate>,
    health: Arc<Health>,
    (client, only): (Option<ApiClient>, Option<NamespacedName>),
) -> Result<Source, String> {
    let sink = move || Sink::new(settings, families.clone(), node.clone(), health.clone());
    match (client, &flags.objects) {
        (Some(client), _) => Ok(api::start(client, settings, only.as_ref(), [sink(), sink(), sink(), sink()])),
        (None, Some(path)) => Ok(files::start(path.clone(), only, sink())),
        (None, None) => Err("there is neither an API server nor --objects".to_owned()),
    }
}
