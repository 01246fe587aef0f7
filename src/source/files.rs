//! `--objects`: a file or a folder of files, watched.
//!
//! In: a path. Out: changes, after every edit. Must not know: what is in objects.
//! A file that cannot be read or parsed keeps what it held before; of a file only the objects' names are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use proxier::model::NamespacedName;
use proxier::track::{Change, Kind, ObjectKey};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{Sink, Source, objects};
use crate::file_watch::FolderWatch;

/// How the names of files end that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// What a file held when it was last read well.
#[derive(Default)]
struct FileIndex {
    /// A fingerprint of its text; `None`: to be read again.
    print: Option<u64>,
    keys: BTreeSet<ObjectKey>,
}

/// Reads everything once and goes on watching. The file system is used on a thread of its own: a big folder takes a
/// while, a network file system may hang, and health must be answered all the same. Ends if the path is not there.
pub fn start(path: PathBuf, only: Option<NamespacedName>, sink: Sink) -> Source {
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
    /// The only Service that is asked for.
    only: Option<NamespacedName>,
    sink: Sink,
    /// Whether all files were read well once. Before that nothing is programmed: rules of an earlier run may be there
    /// for objects that cannot be read now.
    complete: bool,
    held: BTreeMap<PathBuf, FileIndex>,
    /// What was wrong when it was last looked at, so that it is logged once.
    problems: BTreeMap<PathBuf, String>,
    /// The objects that are in several files, with these, as the log has them.
    shared: BTreeMap<ObjectKey, Vec<PathBuf>>,
}

impl ObjectFiles {
    /// Begins the lists of all kinds; nothing is read yet.
    fn open(path: PathBuf, only: Option<NamespacedName>, sink: Sink) -> Result<(Self, FolderWatch), String> {
        let found = std::fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let watch = FolderWatch::new(&path);
        info!("Taking objects from {} instead of an API server", path.display());
        for kind in Kind::ALL {
            sink.mark(&Change::Listing(kind));
        }
        let (held, problems, shared) = Default::default();
        Ok((Self { path, is_folder: found.is_dir(), only, sink, complete: false, held, problems, shared }, watch))
    }

    /// Reads what changed, and ends the lists once everything was read well.
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

    /// Reads every file whose text is new, and deletes objects that no file has any more. Returns whether anything
    /// changed.
    ///
    /// Of an object in several files the last file's counts. The files are read from the last to the first, so that it
    /// is known of each object whether a later file has it, and no other version of it is delivered.
    fn read(&mut self) -> bool {
        let paths = match self.paths() {
            Ok(paths) => paths,
            Err(error) => {
                self.complain(self.path.clone(), error.to_string());
                return false;
            }
        };
        let known = |path: &PathBuf| paths.contains(path);
        self.problems.retain(|path, _| known(path));
        let vanished: Vec<PathBuf> = self.held.keys().filter(|path| !known(path)).cloned().collect();
        let mut changed = !vanished.is_empty();
        let mut gone = BTreeSet::new();
        for path in vanished {
            gone.extend(self.held.remove(&path).unwrap_or_default().keys);
        }
        for path in paths.into_iter().rev() {
            match self.read_file(&path, &gone) {
                Ok(lost) => {
                    changed |= lost.is_some();
                    gone.extend(lost.unwrap_or_default());
                    self.problems.remove(&path);
                }
                Err(problem) => self.complain(path, problem),
            }
        }
        for key in gone {
            if !self.held.values().any(|held| held.keys.contains(&key)) {
                self.sink.delete(&key);
            }
        }
        if changed {
            self.name_shared();
        }
        changed
    }

    fn complain(&mut self, path: PathBuf, problem: String) {
        if self.problems.get(&path) != Some(&problem) {
            let rest = if self.complete { "its objects stay" } else { "nothing is programmed before it is" };
            error!("{} is not taken over, {rest}: {problem}", path.display());
            self.problems.insert(path, problem);
        }
    }

    /// Warns of objects that are in several files, of each once as long as it is in the same ones.
    fn name_shared(&mut self) {
        let (mut first, mut shared) = (BTreeMap::new(), BTreeMap::<ObjectKey, Vec<PathBuf>>::new());
        for (path, held) in &self.held {
            for key in &held.keys {
                if let Some(earlier) = first.insert(key, path) {
                    shared.entry(key.clone()).or_insert_with(|| vec![earlier.clone()]).push(path.clone());
                }
            }
        }
        for (key, paths) in shared.iter().filter(|(key, paths)| self.shared.get(key) != Some(paths)) {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let last = paths.last().map(String::as_str).unwrap_or_default();
            warn!("{key} is in several files ({}): the last one counts, {last}", paths.join(", "));
        }
        self.shared = shared;
    }

    /// Logs how many files and objects there are.
    fn report(&self) {
        if self.only.is_some() {
            return;
        }
        let path = self.path.display();
        let keys: BTreeSet<&ObjectKey> = self.held.values().flat_map(|held| &held.keys).collect();
        let count = |kind| keys.iter().filter(|key| key.kind == kind).count();
        let (services, slices, nodes) = (count(Kind::Service), count(Kind::EndpointSlice), count(Kind::Node));
        info!(
            "Objects in {path}: files {}, Services {services}, EndpointSlices {slices}, Nodes {nodes}",
            self.held.len()
        );
        if services == 0 {
            warn!(
                "There is no Service in {path}, so no rules for any: subfolders, hidden files and files that end in \
                 anything but {} are not read",
                EXTENSIONS.map(|ending| format!(".{ending}")).join(", ")
            );
        }
    }

    /// Reads one file if its text is new or it has an object of `gone`, which a later file has lost; returns the objects
    /// that it held and holds no more.
    fn read_file(&mut self, path: &Path, gone: &BTreeSet<ObjectKey>) -> Result<Option<BTreeSet<ObjectKey>>, String> {
        if let Some(held) = self.held.get_mut(path)
            && !held.keys.is_disjoint(gone)
        {
            held.print = None;
        }
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let print = Some(fingerprint(&text));
        if self.held.get(path).is_some_and(|held| held.print == print) {
            return Ok(None);
        }
        // Decoded at once: the objects of a big cluster would take ten times as much memory.
        let (sink, only) = (&mut self.sink, self.only.as_ref());
        let mut decode = |object: objects::Object| {
            let origin = format!("{}: {}", path.display(), object.place);
            sink.decode(object.key, object.value, origin)
        };
        let parsed = objects::parse_as(&text, only, &mut decode)?;
        drop(text);
        for other in parsed.passed_over {
            info!("{}: {other}: passed over", path.display());
        }
        let (mut keys, mut last) = (BTreeSet::new(), Vec::new());
        for object in parsed.objects.into_iter().rev() {
            if keys.insert(object.key.clone()) {
                last.push(object);
            } else {
                warn!("{}: {} is there more than once, the last one counts", path.display(), object.key);
            }
        }
        let later = (Bound::Excluded(path), Bound::Unbounded);
        let is_later = |key: &ObjectKey| self.held.range::<Path, _>(later).any(|(_, held)| held.keys.contains(key));
        for object in last.into_iter().rev().filter(|object| !is_later(&object.key)) {
            self.sink.deliver(object);
        }
        let old = self.held.insert(path.to_owned(), FileIndex { print, keys: keys.clone() }).unwrap_or_default();
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

/// A file, or a link to one. A link that leads nowhere is not a removed file: what it held stays until it leads to
/// something again, or is removed itself.
fn may_hold_objects(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(data) => data.is_file(),
        Err(_) => path.is_symlink(),
    }
}

fn fingerprint(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
