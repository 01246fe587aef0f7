//! Lists the objects once and returns the model of each family.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netfilter::IpFamily;
use proxier::mailbox::Message;
use proxier::mailbox::{Mail, Receiver, mailbox};
use proxier::model::NamespacedName;
use proxier::track::{Change, Kind, Tracker};
use tokio::sync::mpsc::unbounded_channel;

use super::arguments::ResolvedSources;
use crate::cli::SourceFlags;
use crate::client;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::source::{self, FamilySenders, NodeUpdate, Outages, Receivers};

/// How often to look whether everything has come.
const LOOK: Duration = Duration::from_millis(10);

/// What has come so far.
struct Coming {
    families: Vec<(IpFamily, Receiver, Tracker)>,
    /// What went wrong last with each kind.
    troubles: BTreeMap<Kind, String>,
    /// The Services, and whether they have ports for a proxy in any family.
    ported: BTreeMap<NamespacedName, bool>,
}

/// Lists everything once; with `only`, of the Services this one and its slices. `portless`: gets the Services without ports.
///
/// # Errors
/// If it cannot be had in time, or not at all.
pub fn load(
    asked: &ResolvedSources,
    only: Option<&NamespacedName>,
    portless: &Mutex<BTreeSet<NamespacedName>>,
) -> Result<BTreeMap<IpFamily, Tracker>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let mut coming = Coming { families: Vec::new(), troubles: BTreeMap::new(), ported: BTreeMap::new() };
    let listed = runtime.block_on(async { tokio::time::timeout(asked.timeout, list(asked, only, &mut coming)).await });
    // A file system that hangs must not keep the command from its end.
    runtime.shutdown_background();
    listed.unwrap_or_else(|_| Err(coming.missing(asked)))?;
    let without_ports = coming.ported.into_iter().filter(|(_, has_ports)| !has_ports).map(|(name, _)| name);
    *portless.lock().unwrap_or_else(PoisonError::into_inner) = without_ports.collect();
    Ok(coming.families.into_iter().map(|(family, _, tracker)| (family, tracker)).collect())
}

async fn list(asked: &ResolvedSources, only: Option<&NamespacedName>, coming: &mut Coming) -> Result<(), String> {
    let ResolvedSources { settings, objects, master, .. } = asked;
    let health = Arc::new(Health::new(settings.proxier.periods.sync, objects.is_some()));
    let metrics = Metrics::new("iptables").map_err(|error| error.to_string())?;
    let mut families = FamilySenders::default();
    for family in IpFamily::ALL {
        let (sender, changes) = mailbox();
        families.insert(family, sender);
        coming.families.push((family, changes, Tracker::default()));
    }
    let client = match objects {
        Some(_) => None,
        None => Some((client::connect(settings, master, &metrics).await?.objects, Outages::default())),
    };
    let flags = SourceFlags { objects: objects.clone(), ..SourceFlags::default() };
    let (sender, mut news) = unbounded_channel();
    let receivers = Receivers { families, node: sender, health, selected: None };
    let mut source = source::start(&flags, settings, receivers, client, only.cloned())?;
    let complete = async {
        loop {
            while let Ok(news) = news.try_recv() {
                coming.heard(news);
            }
            // Each takes what is there, though an earlier one waits for more.
            let Coming { families, ported, .. } = &mut *coming;
            if families.iter_mut().fold(true, |all, (_, changes, tracker)| take(changes, tracker, ported) && all) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        error = &mut source => Err(error),
        () = complete => Ok(()),
    }
}

impl Coming {
    fn heard(&mut self, news: NodeUpdate) {
        let change = match news {
            NodeUpdate::Applied(node) => Change::Node(node),
            NodeUpdate::ListProgress(change) => change,
            NodeUpdate::Deleted => return,
            NodeUpdate::Failed(kind, said) => {
                self.troubles.insert(kind, said);
                return;
            }
        };
        self.families.iter_mut().for_each(|(_, _, tracker)| _ = tracker.apply(change.clone()));
    }

    /// What has not come in time, and why.
    fn missing(&self, asked: &ResolvedSources) -> String {
        if asked.objects.is_some() {
            return format!("the files could not all be read within {:?}", asked.timeout);
        }
        let listed = |kind| self.families.iter().all(|(_, _, tracker)| tracker.listed(kind));
        let missing = [Kind::Service, Kind::EndpointSlice, Kind::Node].into_iter().filter(|kind| !listed(*kind));
        let missing: Vec<Kind> = missing.collect();
        let names: Vec<String> = missing.iter().map(|kind| format!("{}s", kind.name())).collect();
        let mut why: Vec<&str> =
            missing.iter().filter_map(|kind| self.troubles.get(kind)).map(String::as_str).collect();
        why.dedup();
        let why = if why.is_empty() { String::new() } else { format!(": {}", why.join("; ")) };
        format!("the API server gave no complete list of {} within {:?}{why}", names.join(", "), asked.timeout)
    }
}

/// Takes what has come; whether that is all.
fn take(changes: &Receiver, tracker: &mut Tracker, ported: &mut BTreeMap<NamespacedName, bool>) -> bool {
    while let Ok(Mail { message: Message::Change(change), .. }) = changes.try_recv() {
        if let Change::Service(name, ports) = &change {
            *ported.entry(name.clone()).or_default() |= !ports.is_empty();
        }
        tracker.apply(change);
    }
    tracker.complete() && tracker.node_listed()
}
