//! `--objects`: a file or a folder of files, watched.
//!
//! In: a path. Out: changes, after every edit. Must not know: what is in objects.
//! A file that cannot be read or parsed keeps what it held before; of a file only the objects' names are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::AccessKind;
use notify::{EventKind, RecursiveMode, Watcher};
use proxier::track::{Change, Kind, ObjectKey};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{Sink, Source, objects};

/// Edits come in bursts: an editor truncates, writes, renames.
const SETTLE: Duration = Duration::from_millis(50);

/// Where changes go unnoticed (some network file systems), a look now and then finds them.
const FALLBACK: Duration = Duration::from_secs(30);

/// Which objects each file held when it was last read well, and a fingerprint of its text.
type Held = BTreeMap<PathBuf, (u64, BTreeSet<ObjectKey>)>;

/// Reads everything once and goes on watching.
///
/// # Errors
/// If the path is not there or cannot be watched.
pub fn start(path: PathBuf, sink: Sink) -> Result<Source, String> {
    let (sender, mut events) = mpsc::channel(1);
    let told = |path: &Path, error: &dyn std::fmt::Display| format!("--objects {}: {error}", path.display());
    let is_folder = std::fs::metadata(&path).map_err(|error| told(&path, &error))?.is_dir();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is an event too. One event waiting is enough: everything is looked at again anyway.
        if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(AccessKind::Open(_) | AccessKind::Read))) {
            let _ = sender.try_send(());
        }
    })
    .map_err(|error| told(&path, &error))?;
    // A file that is replaced is another file: its folder tells.
    let folder = if is_folder {
        path.clone()
    } else {
        path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
    };
    watcher.watch(&folder, RecursiveMode::NonRecursive).map_err(|error| told(&folder, &error))?;
    info!("Taking objects from {} instead of an API server", path.display());

    let mut files = Files { path, sink, held: Held::new() };
    Ok(Box::pin(async move {
        let _watcher = watcher;
        for kind in Kind::ALL {
            files.sink.mark(&Change::Listing(kind));
        }
        files.read();
        for kind in Kind::ALL {
            files.sink.mark(&Change::Listed(kind));
        }
        loop {
            // The channel's other end is in the watcher, which we hold.
            let _ = tokio::time::timeout(FALLBACK, events.recv()).await;
            tokio::time::sleep(SETTLE).await;
            files.read();
        }
    }))
}

struct Files {
    path: PathBuf,
    sink: Sink,
    held: Held,
}

impl Files {
    /// Looks at every file; tells what is new and what is gone.
    fn read(&mut self) {
        let paths = match self.paths() {
            Ok(paths) => paths,
            Err(error) => {
                error!("cannot list {}, its objects stay: {error}", self.path.display());
                return;
            }
        };
        let mut gone: BTreeSet<ObjectKey> = BTreeSet::new();
        let vanished: Vec<PathBuf> = self.held.keys().filter(|path| !paths.contains(*path)).cloned().collect();
        for path in vanished {
            gone.extend(self.held.remove(&path).map(|(_, keys)| keys).unwrap_or_default());
        }
        for path in paths {
            if let Some(lost) = self.read_file(&path) {
                gone.extend(lost);
            }
        }
        for key in gone {
            if !self.held.values().any(|(_, keys)| keys.contains(&key)) {
                self.sink.delete(&key);
            }
        }
    }

    /// Reads one file if its text is new; returns the objects that it held and holds no more.
    fn read_file(&mut self, path: &Path) -> Option<BTreeSet<ObjectKey>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                error!("cannot read {}, its objects stay: {error}", path.display());
                return None;
            }
        };
        let print = fingerprint(&text);
        if self.held.get(path).is_some_and(|(held, _)| *held == print) {
            return None;
        }
        let objects = match objects::parse(&text) {
            Ok(objects) => objects,
            Err(problem) => {
                error!("{} is not taken over, its objects stay: {problem}", path.display());
                return None;
            }
        };
        let mut keys = BTreeSet::new();
        for object in objects {
            if !keys.insert(object.key.clone()) {
                warn!("{}: {} is there more than once, the last one counts", path.display(), object.key);
            }
            // What is wrong with it has been logged.
            let _ = self.sink.apply(object.key.kind, object.value);
        }
        let (_, old) = self.held.insert(path.to_owned(), (print, keys)).unwrap_or_default();
        let keys = self.held.get(path).map(|(_, keys)| keys)?;
        Some(old.difference(keys).cloned().collect())
    }

    fn paths(&self) -> std::io::Result<BTreeSet<PathBuf>> {
        if !self.path.is_dir() {
            return Ok(BTreeSet::from([self.path.clone()]));
        }
        let mut paths = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            let wanted = path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if wanted && !hidden && path.is_file() {
                paths.insert(path);
            }
        }
        Ok(paths)
    }
}

fn fingerprint(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
