//! Where objects come from: an API server, or files.
//!
//! In: objects and what happens to them. Out: [`Change`]s to the families' proxiers. Must not know: rules.
//! Objects are turned into compact values at once and dropped.

mod api;
mod causes;
mod files;
pub mod objects;
mod token;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use proxier::IpFamily;
use proxier::track::{Change, Kind, ObjectError, ObjectKey, Translated, Translator};
use serde_json::Value;
use tracing::{error, warn};

use crate::cli::Flags;
use crate::config::Settings;
use crate::health::Health;
use crate::metrics::Metrics;

/// The proxiers of the families that this host has.
#[derive(Clone, Debug, Default)]
pub struct Families(Vec<(IpFamily, Sender<Change>)>);

impl Families {
    /// Adds a family's proxier.
    pub fn insert(&mut self, family: IpFamily, sender: Sender<Change>) {
        self.0.push((family, sender));
    }

    fn send(&self, family: IpFamily, change: Change) {
        if let Some((_, sender)) = self.0.iter().find(|(of, _)| *of == family) {
            // A proxier that ended is noticed where its thread is waited for.
            let _ = sender.send(change);
        }
    }
}

/// Takes objects of any kind to the families.
pub struct Sink {
    families: Families,
    translator: Translator,
    health: Arc<Health>,
}

impl Sink {
    fn new(settings: &Settings, families: Families, health: Arc<Health>) -> Self {
        let translator = Translator::new(&settings.proxier.node_name, settings.proxier.hide_external_ips);
        Self { families, translator, health }
    }

    /// An object exists now. One that cannot be understood is named in the log and skipped: what is known of it stays.
    fn apply(&mut self, kind: Kind, object: Value) -> Result<(), ObjectError> {
        let key = proxier::track::key_of(kind, &object);
        match self.translator.applied(kind, object) {
            Ok(translated) => {
                if let Some(eligible) = translated.node_eligible {
                    self.health.node(eligible);
                }
                self.tell(translated);
                Ok(())
            }
            Err(problem) => {
                error!("{problem}");
                self.tell(Translated::everywhere(&Change::Kept(key)));
                Err(problem)
            }
        }
    }

    /// An object is gone.
    fn delete(&self, key: &ObjectKey) {
        self.tell(Translator::deleted(key));
    }

    /// A list begins or ends.
    fn mark(&self, change: &Change) {
        self.tell(Translated::everywhere(change));
    }

    fn tell(&self, translated: Translated) {
        for problem in &translated.problems {
            warn!("{problem}");
        }
        for (family, change) in translated.changes {
            self.families.send(family, change);
        }
    }
}

/// A source at work. It ends only with an error, for the log.
pub type Source = Pin<Box<dyn Future<Output = String> + Send>>;

/// Starts what the flags name.
///
/// # Errors
/// If there is no way to the objects and no hope of one: no kubeconfig, an objects path that is not there.
pub async fn start(
    flags: &Flags,
    settings: &Settings,
    families: Families,
    health: Arc<Health>,
    metrics: &Metrics,
) -> Result<Source, String> {
    let sink = move || Sink::new(settings, families.clone(), health.clone());
    match &flags.objects {
        Some(path) => files::start(path.clone(), sink()),
        None => api::start(settings, &flags.master, [sink(), sink(), sink()], metrics).await,
    }
}
