//! The configuration file, watched: when its content changes, the program has to be started again.
//!
//! In: a path and the text that was read from it. Out: a message, once the content is another one. Must not know: what
//! the text means. An edit in place, a file renamed over it and the symbolic link of a ConfigMap moved elsewhere are all
//! the same here (kube-proxy sees only the first, behaviour.yaml I4); a new date or mode is nothing.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::file_watch::FolderWatch;

/// A configuration file that is watched.
pub struct ConfigWatch {
    path: PathBuf,
    text: String,
    folder: FolderWatch,
    /// Why it could not be read when it was last looked at, so that it is said once.
    problem: Option<String>,
}

impl ConfigWatch {
    /// Watches the file that `text` was read from. `None`: it is a pipe, which cannot be read twice.
    pub fn new(path: &Path, text: String) -> Option<Self> {
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            info!("the configuration {} is no file, and so is not watched", path.display());
            return None;
        }
        Some(Self { path: path.to_owned(), text, folder: FolderWatch::new(path), problem: None })
    }

    /// Waits for another content. Returns what to say about it.
    pub async fn updated(mut self) -> String {
        let path = self.path.clone();
        loop {
            // On a thread of its own, as a file system may hang. The file may have changed before it was watched.
            let look = move || {
                self.folder.refresh();
                (self.differs(), self)
            };
            let Ok((differs, watch)) = spawn_blocking(look).await else { break };
            if differs {
                break;
            }
            self = watch;
            self.folder.changed().await;
        }
        let path = path.display();
        format!("content of the proxy server's configuration file was updated: {path}; ending, to be started with it")
    }

    fn differs(&mut self) -> bool {
        match std::fs::read(&self.path) {
            Ok(bytes) => {
                self.problem = None;
                bytes != self.text.as_bytes()
            }
            Err(error) => {
                let problem = error.to_string();
                if self.problem.as_ref() != Some(&problem) {
                    warn!(
                        "the configuration file {} cannot be read, what was read stays: {problem}",
                        self.path.display()
                    );
                }
                self.problem = Some(problem);
                false
            }
        }
    }
}

/// Waits as [`ConfigWatch::updated`], or for ever where there is no file.
pub async fn updated(watch: Option<ConfigWatch>) -> String {
    match watch {
        Some(watch) => watch.updated().await,
        None => match std::future::pending::<Infallible>().await {},
    }
}
