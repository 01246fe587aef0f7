//! Notices that something in a folder changed.
//!
//! In: paths. Out: "look again", soon after a change, and now and then without one. Must not know: what is in files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::AccessKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::error;

/// Edits come in bursts: an editor truncates, writes, renames.
const SETTLE: Duration = Duration::from_millis(50);

/// Where changes go unnoticed (some network file systems, a folder put in the place of another, a file behind a symbolic
/// link), a look now and then finds them.
pub const FALLBACK: Duration = Duration::from_secs(10);

/// A folder that is watched.
pub struct FolderWatch {
    watcher: RecommendedWatcher,
    events: mpsc::Receiver<()>,
    folder: PathBuf,
    /// Which folder that was when the watch began.
    watched: Option<(u64, u64)>,
}

impl FolderWatch {
    /// Watches a folder, or the folder of a file: a file that is replaced is another file, its folder tells.
    ///
    /// # Errors
    /// If that cannot be watched.
    pub fn new(path: &Path) -> Result<Self, String> {
        let folder = if path.is_dir() {
            path
        } else {
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
        };
        let told = |error: &dyn std::fmt::Display| format!("cannot watch {}: {error}", folder.display());
        let (sender, events) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event too. One event waiting is enough: everything is looked at again anyway.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(AccessKind::Open(_) | AccessKind::Read)))
            {
                let _ = sender.try_send(());
            }
        })
        .map_err(|error| told(&error))?;
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(|error| told(&error))?;
        let watched = identity(folder);
        Ok(Self { watcher, events, folder: folder.to_owned(), watched })
    }

    /// Waits until it is worth looking again.
    pub async fn changed(&mut self) {
        // The channel's other end is in the watcher, which we hold.
        let _ = tokio::time::timeout(FALLBACK, self.events.recv()).await;
        tokio::time::sleep(SETTLE).await;
        let now = identity(&self.folder);
        if now.is_some() && now != self.watched {
            // The watch is on the folder that was here, not on the path.
            let _ = self.watcher.unwatch(&self.folder);
            if let Err(error) = self.watcher.watch(&self.folder, RecursiveMode::NonRecursive) {
                error!("cannot watch {}: {error}", self.folder.display());
            }
            self.watched = now;
        }
    }
}

/// Which folder a path leads to.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder).ok().map(|data| (data.dev(), data.ino()))
}
