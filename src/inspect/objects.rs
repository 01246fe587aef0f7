//! The objects as they are now.
//!
//! In: where they are. Out: the model of each family, once everything was listed. Must not know: rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proxier::IpFamily;
use proxier::model::NamespacedName;
use proxier::track::{Change, Tracker};
use tokio::sync::mpsc::unbounded_channel;

use super::arguments::Asked;
use crate::cli::SourceFlags;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::node::News;
use crate::source::{self, Families};

/// How often to look whether everything has come.
const LOOK: Duration = Duration::from_millis(10);

/// Lists everything once; with `only`, of the Services this one and its slices.
///
/// # Errors
/// If it cannot be had in time, or not at all.
pub fn load(asked: &Asked, only: Option<&NamespacedName>) -> Result<BTreeMap<IpFamily, Tracker>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(async {
        match tokio::time::timeout(asked.timeout, list(asked, only)).await {
            Ok(result) => result,
            Err(_) if asked.objects.is_some() => {
                Err(format!("the files could not all be read within {:?}", asked.timeout))
            }
            Err(_) => Err(format!("the API server gave no complete answer within {:?}", asked.timeout)),
        }
    })
}

async fn list(asked: &Asked, only: Option<&NamespacedName>) -> Result<BTreeMap<IpFamily, Tracker>, String> {
    let Asked { settings, objects, master, .. } = asked;
    let health = Arc::new(Health::new(settings.proxier.periods.sync, objects.is_some()));
    let metrics = Metrics::new("iptables").map_err(|error| error.to_string())?;
    let (mut families, mut held) = (Families::default(), Vec::new());
    for family in IpFamily::ALL {
        let (sender, changes) = channel();
        families.insert(family, sender);
        held.push((family, changes, Tracker::default()));
    }
    let client = match objects {
        Some(_) => None,
        None => Some(source::connect(settings, master, &metrics).await?.objects),
    };
    let flags = SourceFlags { objects: objects.clone(), ..SourceFlags::default() };
    let (sender, mut news) = unbounded_channel();
    let mut source = source::start(&flags, settings, families, sender, health, (client, only.cloned()))?;
    let complete = async {
        loop {
            while let Ok(news) = news.try_recv() {
                let change = match news {
                    News::Seen(node) => Change::Node(node),
                    News::Mark(change) => change,
                    News::Gone => continue,
                };
                held.iter_mut().for_each(|(_, _, tracker)| _ = tracker.apply(change.clone()));
            }
            if held.iter_mut().all(|(_, changes, tracker)| take(changes, tracker)) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        error = &mut source => Err(error),
        () = complete => Ok(held.into_iter().map(|(family, _, tracker)| (family, tracker)).collect()),
    }
}

/// Takes what has come; whether that is all.
fn take(changes: &Receiver<Change>, tracker: &mut Tracker) -> bool {
    while let Ok(change) = changes.try_recv() {
        tracker.apply(change);
    }
    tracker.complete() && tracker.node_listed()
}
