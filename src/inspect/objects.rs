//! The objects as they are now.
//!
//! In: the proxy's flags and settings. Out: the model of each family, once everything was listed. Must not know: rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proxier::IpFamily;
use proxier::track::{Change, Tracker};

use crate::cli::Flags;
use crate::config::Settings;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::source::{self, Families};

/// How often to look whether everything has come.
const LOOK: Duration = Duration::from_millis(10);

/// Lists everything once.
///
/// # Errors
/// If it cannot be had in time, or not at all.
pub fn load(flags: &Flags, settings: &Settings, timeout: Duration) -> Result<BTreeMap<IpFamily, Tracker>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(list(flags, settings, timeout))
}

async fn list(flags: &Flags, settings: &Settings, timeout: Duration) -> Result<BTreeMap<IpFamily, Tracker>, String> {
    let health = Arc::new(Health::new(settings.proxier.periods.sync, flags.objects.is_some()));
    let metrics = Metrics::new("iptables").map_err(|error| error.to_string())?;
    let (mut families, mut held) = (Families::default(), Vec::new());
    for family in IpFamily::ALL {
        let (sender, changes) = channel();
        families.insert(family, sender);
        held.push((family, changes, Tracker::default()));
    }
    let mut source = source::start(flags, settings, families, health, &metrics).await?;
    let complete = async {
        while !held.iter_mut().all(|(_, changes, tracker)| take(changes, tracker)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        error = &mut source => Err(error),
        result = tokio::time::timeout(timeout, complete) => match result {
            Ok(()) => Ok(held.into_iter().map(|(family, _, tracker)| (family, tracker)).collect()),
            Err(_) if flags.objects.is_some() => Err(format!("the files could not all be read within {timeout:?}")),
            Err(_) => Err(format!("the API server gave no complete answer within {timeout:?}")),
        },
    }
}

/// Takes what has come; whether that is all.
fn take(changes: &Receiver<Change>, tracker: &mut Tracker) -> bool {
    while let Ok(change) = changes.try_recv() {
        tracker.apply(change);
    }
    tracker.complete() && tracker.node_listed()
}
