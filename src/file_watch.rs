//! Notifies about changes in a folder.
//!
//! Uses inotify where the kernel grants a watch (`fs.inotify.max_user_instances` and `max_user_watches` are shared by
//! all processes of a user), and polls where it does not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// How long a burst of changes is collected: an editor moves a file away, truncates and writes.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long a renamed file waits for others: a script may move one into place and copy the next.
const SETTLE: Duration = Duration::from_millis(5);

/// The longest time between two reads. inotify misses changes on some network file systems, in a folder that replaces
/// another one, and behind symbolic links.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Events that wait to be taken. More are dropped: everything is read again anyway.
const PENDING: usize = 64;

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// A file was renamed into the folder: it has all its content, so it may be read at once.
    Complete,
    /// Anything else: more may follow, and what is there now may be half of it.
    Partial,
}

/// A watched folder.
pub struct FolderWatch {
    path: PathBuf,
    /// `None` if the kernel grants no watch.
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the watched folder: a watch belongs to these, not to the path.
    watched: Option<(u64, u64)>,
    /// Why there is no watch, so that it is logged once.
    problem: Option<String>,
    sender: mpsc::Sender<Progress>,
    events: mpsc::Receiver<Progress>,
}

impl FolderWatch {
    /// Watches a folder, or the folder of a file, since a replaced file is another inode. Reads the file system.
    pub fn new(path: &Path) -> Self {
        let (sender, events) = mpsc::channel(PENDING);
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
            if let Some(progress) = progress(event.as_ref().ok()) {
                let _ = sender.try_send(progress);
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Waits for a change, at most for the poll interval. Call [`FolderWatch::refresh`] afterwards.
    ///
    /// Returns after `SETTLE` for files that are renamed into the folder, as atomic writers do, unless another is being
    /// written; otherwise when the burst of changes has been collected.
    pub async fn changed(&mut self) {
        let mut event = match tokio::time::timeout(POLL_INTERVAL, self.events.recv()).await {
            Ok(event) => event,
            Err(_) => return,
        };
        let settled = tokio::time::Instant::now() + SETTLE;
        while event == Some(Progress::Complete) {
            match tokio::time::timeout_at(settled, self.events.recv()).await {
                Ok(next) => event = next,
                Err(_) => return,
            }
        }
        tokio::time::sleep(DEBOUNCE).await;
        while self.events.try_recv().is_ok() {}
    }

    fn folder(&self) -> PathBuf {
        if self.path.is_dir() {
            return self.path.clone();
        }
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).to_owned()
    }
}

/// What an event says of a write; `None` for reading, which is an event too. `event` is `None` for an error, such as an
/// overflow of the kernel's queue.
fn progress(event: Option<&notify::Event>) -> Option<Progress> {
    match event.map(|event| event.kind) {
        Some(EventKind::Access(AccessKind::Open(_) | AccessKind::Read)) => None,
        Some(EventKind::Modify(ModifyKind::Name(RenameMode::To))) => Some(Progress::Complete),
        _ => Some(Progress::Partial),
    }
}

/// Device and inode of the folder that a path resolves to.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder).ok().map(|data| (data.dev(), data.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is sent while a file is changed by `change`, which gets the watched folder and one beside it.
    async fn events_of(name: &str, change: fn(&Path, &Path)) -> Vec<Progress> {
        let folder = std::env::temp_dir().join(format!("file-watch-{name}-{}", std::process::id()));
        let inner = folder.join("inner");
        fs::create_dir_all(&inner).expect("a folder");
        fs::write(inner.join("old.yaml"), "old").expect("a file");
        let mut watch = FolderWatch::new(&inner);
        change(&inner, &folder);
        let mut events = Vec::from_iter(watch.events.recv().await);
        // The kernel queues all events of a change in order, and this one is the last.
        fs::remove_file(inner.join("old.yaml")).expect("the file is there");
        while events.last() != Some(&Progress::Partial) {
            events.extend(watch.events.recv().await);
        }
        fs::remove_dir_all(folder).expect("removed");
        events
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_into_the_folder_is_complete() {
        let rename = |inner: &Path, outer: &Path| {
            fs::write(outer.join("new"), "new").expect("written");
            fs::rename(outer.join("new"), inner.join("new.yaml")).expect("renamed");
        };
        assert_eq!(events_of("renamed", rename).await, [Progress::Complete, Progress::Partial]);
    }

    #[tokio::test]
    async fn a_file_that_is_moved_away_is_partial() {
        let rename = |inner: &Path, _: &Path| {
            fs::rename(inner.join("old.yaml"), inner.join("old.yaml~")).expect("renamed");
            fs::write(inner.join("old.yaml"), "newer").expect("written");
        };
        assert_eq!(events_of("moved", rename).await.first(), Some(&Progress::Partial));
    }

    /// How long [`FolderWatch::changed`] waits for these events, on a paused clock.
    async fn waited_for(events: &[Progress]) -> Duration {
        let mut watch = FolderWatch::new(Path::new("/no/such/folder"));
        while watch.events.try_recv().is_ok() {}
        for &event in events {
            watch.sender.try_send(event).expect("there is room");
        }
        let start = tokio::time::Instant::now();
        watch.changed().await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn changed_when_all_writes_are_complete_returns_once_they_have_settled() {
        assert_eq!(waited_for(&[Progress::Complete, Progress::Complete]).await.as_millis(), SETTLE.as_millis());
    }

    #[tokio::test(start_paused = true)]
    async fn changed_when_a_write_is_partial_collects_the_burst() {
        assert_eq!(waited_for(&[Progress::Complete, Progress::Partial]).await.as_millis(), DEBOUNCE.as_millis());
    }

    #[tokio::test(start_paused = true)]
    async fn changed_when_nothing_happens_returns_after_the_poll_interval() {
        assert_eq!(waited_for(&[]).await.as_millis(), POLL_INTERVAL.as_millis());
    }
}
