//! Notices changes in a folder.
//!
//! Uses inotify where the kernel grants a watch (`fs.inotify.max_user_instances` and `max_user_watches` are shared by
//! everything that runs as the same user), and polls where it does not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::AccessKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Edits come in bursts: an editor truncates, writes, renames.
const SETTLE: Duration = Duration::from_millis(50);

/// The longest time between two looks: changes go unnoticed on some network file systems, in a folder that replaces
/// another one, in a file behind a symbolic link, and where there is no inotify.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// A folder that is watched.
pub struct FolderWatch {
    path: PathBuf,
    /// `None`: the kernel grants no watch.
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the folder that is watched: the watch is on these, not on the path.
    watched: Option<(u64, u64)>,
    /// Why there is no watch, so that it is logged once.
    problem: Option<String>,
    sender: mpsc::Sender<()>,
    events: mpsc::Receiver<()>,
}

impl FolderWatch {
    /// Watches a folder, or the folder of a file: a file that is replaced is another file. Reads the file system.
    pub fn new(path: &Path) -> Self {
        let (sender, events) = mpsc::channel(1);
        let (watcher, watched, problem) = (None, None, None);
        let mut watch = Self { path: path.to_owned(), watcher, watched, problem, sender, events };
        watch.refresh();
        watch
    }

    /// Watches the folder that the path leads to now. Reads the file system, and so may block as long as that does.
    pub fn refresh(&mut self) {
        let folder = self.folder();
        let now = identity(&folder);
        if self.watcher.is_some() && (now.is_none() || now == self.watched) {
            return;
        }
        // The old one ends first: there may be only one left.
        self.watcher = None;
        match self.watch(&folder) {
            Ok(watcher) => {
                (self.watcher, self.watched) = (Some(watcher), now);
                if self.problem.take().is_some() {
                    info!("Watching {} again", folder.display());
                }
            }
            Err(error) => {
                let problem = error.to_string();
                if self.problem.as_ref() != Some(&problem) {
                    warn!("Failed to watch {}, polling every {POLL_INTERVAL:?}: {problem}", folder.display());
                }
                self.problem = Some(problem);
            }
        }
    }

    fn watch(&self, folder: &Path) -> notify::Result<RecommendedWatcher> {
        let sender = self.sender.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event too. One pending event is enough: everything is read again anyway.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(AccessKind::Open(_) | AccessKind::Read)))
            {
                let _ = sender.try_send(());
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Waits for a change, at most for the poll interval. [`FolderWatch::refresh`] is due then.
    pub async fn changed(&mut self) {
        let _ = tokio::time::timeout(POLL_INTERVAL, self.events.recv()).await;
        tokio::time::sleep(SETTLE).await;
    }

    fn folder(&self) -> PathBuf {
        if self.path.is_dir() {
            return self.path.clone();
        }
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).to_owned()
    }
}

/// Device and inode of the folder that a path leads to.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder).ok().map(|data| (data.dev(), data.ino()))
}
