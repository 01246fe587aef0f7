//! Sources of objects: an API server, or files.
//!
//! Each object is translated to [`Change`]s for the families' proxiers at once and dropped.

mod api;
mod files;
pub mod objects;
mod outage;
mod problems;
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

pub use self::outage::Outages;

use self::problems::LoggedProblems;
use crate::cli::SourceFlags;
use crate::client::ApiClient;
use crate::config::ValidatedConfig;
use crate::health::Health;
use crate::service_metrics::SelectedServices;

/// The mailboxes of the families that this host can program.
#[derive(Clone, Debug, Default)]
pub struct FamilySenders(Vec<(IpFamily, Sender)>);

impl FamilySenders {
    /// Adds a family's mailbox.
    pub fn insert(&mut self, family: IpFamily, sender: Sender) {
        self.0.push((family, sender));
    }

    /// The families in it.
    #[must_use]
    pub fn known(&self) -> Vec<IpFamily> {
        self.0.iter().map(|(family, _)| *family).collect()
    }

    /// Sends a change to every family.
    pub fn send_all(&self, change: &Change) {
        for (family, _) in &self.0 {
            self.send(*family, change.clone().into());
        }
    }

    /// Sends a message to one family.
    pub fn send(&self, family: IpFamily, message: Message) {
        if let Some((_, sender)) = self.0.iter().find(|(of, _)| *of == family) {
            // A proxier that ended is detected where its thread is joined.
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

/// The receivers of what a source delivers.
#[derive(Clone)]
pub struct Receivers {
    /// The mailboxes of the families.
    pub families: FamilySenders,
    /// Receives updates of this node's Node.
    pub node: UnboundedSender<NodeUpdate>,
    /// Whether the node is eligible for load balancers.
    pub health: Arc<Health>,
    /// The Services that the selector of service metrics selects, if it has one.
    pub selected: Option<SelectedServices>,
}

/// Translates objects of any kind and sends them to the families.
pub struct Sink {
    receivers: Receivers,
    translator: Translator,
    node_name: String,
    logged: LoggedProblems,
}

/// A decoded and translated object.
struct DecodedObject {
    key: ObjectKey,
    /// Whether the selector of service metrics selects it, as [`SelectedServices::matches`] says.
    selected: Option<bool>,
    result: Result<Translation, String>,
    /// The file and document, as a prefix of messages; empty for an API server's object.
    origin: String,
}

impl Sink {
    fn new(settings: &ValidatedConfig, receivers: Receivers) -> Self {
        let node_name = settings.proxier.node_name.clone();
        let translator = Translator::new(&node_name, settings.proxier.hide_external_ips).mode(settings.mode);
        Self { receivers, translator, node_name, logged: LoggedProblems::default() }
    }

    /// Sends the current state of an object. An object with an invalid field is logged and skipped: its last valid
    /// state is kept.
    fn apply(&mut self, object: Object) {
        let key = object.key().clone();
        let (selected, result) = self.translate(object);
        self.deliver(DecodedObject { key, selected, result, origin: String::new() });
    }

    /// Decodes an object of the file `origin`, without sending it.
    fn decode(&mut self, key: ObjectKey, object: Value, origin: String) -> DecodedObject {
        let decoded = Object::from_value(key.kind, object);
        let (selected, result) =
            decoded.map_or_else(|error| (None, Err(error.to_string())), |object| self.translate(object));
        // Kept only where a message needs it: there may be many objects.
        let in_order = result.as_ref().is_ok_and(|translated| translated.problems.is_empty());
        let origin = if in_order { String::new() } else { format!("{origin}: ") };
        DecodedObject { key, selected, result, origin }
    }

    fn translate(&mut self, object: Object) -> (Option<bool>, Result<Translation, String>) {
        let selected = self.receivers.selected.as_ref().and_then(|selected| selected.matches(&object));
        (selected, self.translator.applied(object).map_err(|error| error.to_string()))
    }

    /// Sends a decoded object. Problems of an object are logged when they are new.
    fn deliver(&mut self, DecodedObject { key, selected, result, origin }: DecodedObject) {
        self.receivers.selected.iter().for_each(|services| services.set(&key, selected));
        match result {
            Ok(translated) => {
                if let Some(eligible) = translated.node_eligible {
                    self.receivers.health.set_node_eligible(eligible);
                }
                for problem in self.logged.replace(&key, &translated.problems) {
                    warn!("{origin}{problem}");
                }
                match translated.changes.first() {
                    // The same in all families.
                    Some((_, Change::Node(node))) => self.send_node_update(NodeUpdate::Applied(node.clone())),
                    _ => self.send(translated),
                }
            }
            Err(problem) => {
                for problem in self.logged.replace(&key, &[problem]) {
                    error!("{origin}{problem}");
                }
                self.send(Translation::everywhere(&Change::Kept(key)));
            }
        }
    }

    /// Reports that an object was deleted.
    fn delete(&mut self, key: &ObjectKey) {
        self.logged.remove(key);
        self.receivers.selected.iter().for_each(|selected| selected.remove(key));
        if key.kind == Kind::Node && *key.name.name == *self.node_name {
            self.send_node_update(NodeUpdate::Deleted);
        }
        self.send(Translator::deleted(key));
    }

    /// Reports that a list begins or ends.
    fn mark(&mut self, change: &Change) {
        self.logged.mark(change);
        self.receivers.selected.iter().for_each(|selected| selected.mark(change));
        match change {
            Change::Listing(Kind::Node) | Change::Listed(Kind::Node) | Change::ListedInPart(Kind::Node) => {
                self.send_node_update(NodeUpdate::ListProgress(change.clone()))
            }
            _ => self.send(Translation::everywhere(change)),
        }
    }

    /// Reports that objects of a kind cannot be read at the moment.
    fn report_failure(&self, kind: Kind, said: &str) {
        self.send_node_update(NodeUpdate::Failed(kind, said.to_owned()));
    }

    fn send_node_update(&self, update: NodeUpdate) {
        // The receiver ends only with the process.
        let _ = self.receivers.node.send(update);
    }

    fn send(&self, translated: Translation) {
        for (family, change) in translated.changes {
            self.receivers.families.send(family, change.into());
        }
    }
}

/// A running source. It ends only with an error, for the log.
pub type RunningSource = Pin<Box<dyn Future<Output = String> + Send>>;

/// Starts the source that the flags name: the API server with a client, else `--objects`. `only` restricts it to one
/// Service and its EndpointSlices. The receivers' channels close when the source is dropped.
///
/// # Errors
/// The flags name neither.
pub fn start(
    flags: &SourceFlags,
    settings: &ValidatedConfig,
    receivers: Receivers,
    client: Option<(ApiClient, Outages)>,
    only: Option<NamespacedName>,
) -> Result<RunningSource, String> {
    let sink = move || Sink::new(settings, receivers.clone());
    match (client, &flags.objects) {
        (Some(api), _) => Ok(api::start(api, settings, only.as_ref(), [sink(), sink(), sink(), sink()])),
        (None, Some(path)) => Ok(files::start(path.clone(), only, sink())),
        (None, None) => Err("neither an API server nor --objects is configured".to_owned()),
    }
}
