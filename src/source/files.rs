//! `--objects`: watches a file or a folder of files.
//!
//! A file that cannot be read or parsed keeps its last valid objects. Only the objects' names are kept per file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use proxier::model::NamespacedName;
use proxier::track::{Change, Kind, ObjectKey};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{RunningSource, Sink, objects};
use crate::file_watch::FolderWatch;

/// Extensions of the files that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The objects in a file when it was last valid.
#[derive(Default)]
struct FileIndex {
    /// A hash of its text; `None` if it must be read again.
    fingerprint: Option<u64>,
    keys: BTreeSet<ObjectKey>,
}

/// Reads all files once, then watches them. Ends if the path does not exist.
///
/// The file system is accessed on a blocking thread: a big folder takes long and a network file system may hang, while
/// health must be served.
pub fn start(path: PathBuf, only: Option<NamespacedName>, sink: Sink) -> RunningSource {
    Box::pin(async move {
        let opened = spawn_blocking(move || ObjectFiles::open(path, only, sink)).await;
        let mut opened = opened.unwrap_or_else(|error| Err(error.to_string()));
        loop {
            let (mut files, mut watch) = match opened {
                Ok(opened) => opened,
                Err(problem) => return format!("--objects {problem}"),
            };
            let read = move || {
                watch.refresh();
                files.update();
                (files, watch)
            };
            opened = spawn_blocking(read).await.map_err(|error| error.to_string());
            if let Ok((_, watch)) = &mut opened {
                watch.changed().await;
            }
        }
    })
}

struct ObjectFiles {
    path: PathBuf,
    is_folder: bool,
    /// The only Service that is needed.
    only: Option<NamespacedName>,
    sink: Sink,
    /// Whether every file was valid once. Nothing is programmed before: rules of an earlier run may exist for objects
    /// that cannot be read now.
    complete: bool,
    files: BTreeMap<PathBuf, FileIndex>,
    /// The last problem of each file, so that each is logged once.
    problems: BTreeMap<PathBuf, String>,
    /// Objects defined in several files, with these files, as logged.
    shared: BTreeMap<ObjectKey, Vec<PathBuf>>,
}

impl ObjectFiles {
    /// Begins the lists of all kinds; reads no file.
    fn open(path: PathBuf, only: Option<NamespacedName>, mut sink: Sink) -> Result<(Self, FolderWatch), String> {
        let found = std::fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let watch = FolderWatch::new(&path);
        info!("Reading objects from {} instead of an API server", path.display());
        for kind in Kind::ALL {
            sink.mark(&Change::Listing(kind));
        }
        let (files, problems, shared) = Default::default();
        Ok((Self { path, is_folder: found.is_dir(), only, sink, complete: false, files, problems, shared }, watch))
    }

    /// Reads changed files, and ends the lists once every file is valid.
    fn update(&mut self) {
        let changed = self.read();
        if self.problems.is_empty() && !self.complete {
            self.complete = true;
            for kind in Kind::ALL {
                self.sink.mark(&Change::Listed(kind));
            }
            self.report();
        } else if changed && self.complete {
            self.report();
        }
    }

    /// Reads every changed file, and deletes objects that are in no file any more. Returns whether anything changed.
    ///
    /// For an object in several files the last file wins. Files are read from the last to the first, so that only the
    /// winning version is delivered.
    fn read(&mut self) -> bool {
        let paths = match self.paths() {
            Ok(paths) => paths,
            Err(error) => {
                self.log_problem(self.path.clone(), error.to_string());
                return false;
            }
        };
        let known = |path: &PathBuf| paths.contains(path);
        self.problems.retain(|path, _| known(path));
        let vanished: Vec<PathBuf> = self.files.keys().filter(|path| !known(path)).cloned().collect();
        let mut changed = !vanished.is_empty();
        let mut gone = BTreeSet::new();
        for path in vanished {
            gone.extend(self.files.remove(&path).unwrap_or_default().keys);
        }
        for path in paths.into_iter().rev() {
            match self.read_file(&path, &gone) {
                Ok(lost) => {
                    changed |= lost.is_some();
                    gone.extend(lost.unwrap_or_default());
                    self.problems.remove(&path);
                }
                Err(problem) => self.log_problem(path, problem),
            }
        }
        for key in gone {
            if !self.files.values().any(|index| index.keys.contains(&key)) {
                self.sink.delete(&key);
            }
        }
        if changed {
            self.log_shared();
        }
        changed
    }

    fn log_problem(&mut self, path: PathBuf, problem: String) {
        if self.problems.get(&path) != Some(&problem) {
            let rest = if self.complete { "keeping its objects" } else { "no rules before it loads" };
            error!("Failed to load {}, {rest}: {problem}", path.display());
            self.problems.insert(path, problem);
        }
    }

    /// Warns about objects in several files, once for each set of files.
    fn log_shared(&mut self) {
        let (mut first, mut shared) = (BTreeMap::new(), BTreeMap::<ObjectKey, Vec<PathBuf>>::new());
        for (path, index) in &self.files {
            for key in &index.keys {
                if let Some(earlier) = first.insert(key, path) {
                    shared.entry(key.clone()).or_insert_with(|| vec![earlier.clone()]).push(path.clone());
                }
            }
        }
        for (key, paths) in shared.iter().filter(|(key, paths)| self.shared.get(key) != Some(paths)) {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let last = paths.last().map(String::as_str).unwrap_or_default();
            warn!("{key} is defined in several files ({}), using {last}", paths.join(", "));
        }
        self.shared = shared;
    }

    /// Logs the number of files and objects.
    fn report(&self) {
        if self.only.is_some() {
            return;
        }
        let path = self.path.display();
        let keys: BTreeSet<&ObjectKey> = self.files.values().flat_map(|index| &index.keys).collect();
        let count = |kind| keys.iter().filter(|key| key.kind == kind).count();
        let (services, slices, nodes) = (count(Kind::Service), count(Kind::EndpointSlice), count(Kind::Node));
        info!(
            "Objects in {path}: files {}, Services {services}, EndpointSlices {slices}, Nodes {nodes}",
            self.files.len()
        );
        if services == 0 {
            warn!(
                "No Service in {path}, no rules to program: subfolders, hidden files and files that end in \
                 anything but {} are not read",
                EXTENSIONS.map(|ending| format!(".{ending}")).join(", ")
            );
        }
    }

    /// Reads a file if its text changed or it has an object of `gone`, which a later file lost. Returns the objects
    /// that it no longer has.
    fn read_file(&mut self, path: &Path, gone: &BTreeSet<ObjectKey>) -> Result<Option<BTreeSet<ObjectKey>>, String> {
        if let Some(index) = self.files.get_mut(path)
            && !index.keys.is_disjoint(gone)
        {
            index.fingerprint = None;
        }
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let fingerprint = Some(hash(&text));
        if self.files.get(path).is_some_and(|index| index.fingerprint == fingerprint) {
            return Ok(None);
        }
        // Decoded one by one: all JSON values of a big cluster would take ten times as much memory.
        let (sink, only) = (&mut self.sink, self.only.as_ref());
        let mut decode = |object: objects::Object| {
            let origin = format!("{}: {}", path.display(), object.document);
            sink.decode(object.key, object.value, origin)
        };
        let parsed = objects::parse_as(&text, only, &mut decode)?;
        drop(text);
        for other in parsed.skipped {
            info!("Skipped {}: {other}", path.display());
        }
        let (mut keys, mut last) = (BTreeSet::new(), Vec::new());
        for object in parsed.objects.into_iter().rev() {
            if keys.insert(object.key.clone()) {
                last.push(object);
            } else {
                warn!("{}: {} is defined more than once, using the last one", path.display(), object.key);
            }
        }
        let later = (Bound::Excluded(path), Bound::Unbounded);
        let is_later = |key: &ObjectKey| self.files.range::<Path, _>(later).any(|(_, index)| index.keys.contains(key));
        for object in last.into_iter().rev().filter(|object| !is_later(&object.key)) {
            self.sink.deliver(object);
        }
        let old = self.files.insert(path.to_owned(), FileIndex { fingerprint, keys: keys.clone() }).unwrap_or_default();
        Ok(Some(old.keys.difference(&keys).cloned().collect()))
    }

    fn paths(&self) -> std::io::Result<BTreeSet<PathBuf>> {
        if !self.is_folder {
            return Ok(BTreeSet::from([self.path.clone()]));
        }
        let mut paths = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            let wanted = path.extension().is_some_and(|end| EXTENSIONS.iter().any(|known| end == *known));
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if wanted && !hidden && may_hold_objects(&path) {
                paths.insert(path);
            }
        }
        Ok(paths)
    }
}

/// Whether the path is a file, or a symbolic link to one. A dangling link is not a removed file: its objects are kept.
fn may_hold_objects(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(data) => data.is_file(),
        Err(_) => path.is_symlink(),
    }
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
