//! Notifies about changes in a folder.
//!
//! Uses inotify where the kernel grants a watch (`fs.inotify.max_user_instances` and `max_user_watches` are shared by
//! all
//! processes of a user), and polls where it does not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::AccessKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// How long a burst of changes is collected: an editor truncates, writes and renames.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// The longest time between two reads. inotify misses changes on some network file systems, in a folder that replaces
/// another one, and behind symbolic links.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// A watched folder.
pub struct FolderWatch {
    path: PathBuf,
    /// `None` if the kernel grants no watch.
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the watched folder: a watch belongs to these, not to the path.
    watched: Option<(u64, u64)>,
    /// Why there is no watch, so that it is logged once.
    problem: Option<String>,
    sender: mpsc::Sender<()>,
    events: mpsc::Receiver<()>,
}

impl FolderWatch {
    /// Watches a folder, or the folder of a file, since a replaced file is another inode. Reads the file system.
    pub fn new(path: &Path) -> Self {
        let (sender, events) = mpsc::channel(1);
        let (watcher, watched, problem) = (None, None, None);
        let mut watch = Self { path: path.to_owned(), watcher, watched, problem, sender, events };
        watch.refresh();
        watch
    }

    /// Watches the folder that the path resolves to now. Blocks as long as the file system does.
    pub fn refresh(&mut self) {
        let folder = self.folder();
        let now = identity(&folder);
        if self.watcher.is_some() && (now.is_none() || now == self.watched) {
            return;
        }
        // Dropped first: it may hold the user's last inotify instance.
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
            // Reading is an event too. One pending event is enough, as everything is read again.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(AccessKind::Open(_) | AccessKind::Read)))
            {
                let _ = sender.try_send(());
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Waits for a change, at most for the poll interval. Call [`FolderWatch::refresh`] afterwards.
    pub async fn changed(&mut self) {
        let _ = tokio::time::timeout(POLL_INTERVAL, self.events.recv()).await;
        tokio::time::sleep(DEBOUNCE).await;
    }

    fn folder(&self) -> PathBuf {
        if self.path.is_dir() {
            return self.path.clone();
        }
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).to_owned()
    }
}

/// Device and inode of the folder that a path resolves to.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder).ok().map(|data| (data.dev(), data.ino()))
}
