//! Watches the configuration file and reports when its content changes, so that the proxy is restarted with it.
//!
//! An edit in place, a file renamed over it and a ConfigMap's moved symbolic link all count, a new date or mode does
//! not.
//! kube-proxy notices edits in place only (behaviour.yaml I4).

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::file_watch::FolderWatch;

/// A watched configuration file.
pub struct ConfigWatch {
    path: PathBuf,
    text: String,
    folder: FolderWatch,
    /// The last read error, so that each error is logged once.
    problem: Option<String>,
}

impl ConfigWatch {
    /// Watches the file that `text` was read from; `None` for a pipe, which cannot be read twice.
    pub fn new(path: &Path, text: String) -> Option<Self> {
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            info!("Not watching configuration {}: not a regular file", path.display());
            return None;
        }
        Some(Self { path: path.to_owned(), text, folder: FolderWatch::new(path), problem: None })
    }

    /// Waits until the content differs. Returns the message to log and to exit with.
    pub async fn updated(mut self) -> String {
        let path = self.path.clone();
        loop {
            // On a blocking thread, as a file system may hang. The file may have changed before it was watched.
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
        format!("content of the proxy server's configuration file was updated: {path}; exiting to be restarted with it")
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
                        "Failed to read configuration file {}, keeping the running configuration: {problem}",
                        self.path.display()
                    );
                }
                self.problem = Some(problem);
                false
            }
        }
    }
}

/// Waits like [`ConfigWatch::updated`], or forever where no file is watched.
pub async fn updated(watch: Option<ConfigWatch>) -> String {
    match watch {
        Some(watch) => watch.updated().await,
        None => match std::future::pending::<Infallible>().await {},
    }
}
