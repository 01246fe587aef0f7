//! The configuration file, watched: when its content changes, the program has to be started again.
//!
//! In: a path and the text that was read from it. Out: a message, once the content is another one. Must not know: what
//! the text means. An edit in place, a file renamed over it and the symbolic link of a ConfigMap moved elsewhere are all
//! the same here (kube-proxy sees only the first, surface.md I4); a new date or mode is nothing.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::file_watch::{FALLBACK, FolderWatch};

/// A configuration file that is watched.
pub struct ConfigWatch {
    path: PathBuf,
    text: String,
    /// `None`: the kernel gives no watch (on a busy node there may be none left); a look now and then has to do.
    folder: Option<FolderWatch>,
    /// Why it could not be read when it was last looked at, so that it is said once.
    problem: Option<String>,
}

impl ConfigWatch {
    /// Watches the file that `text` was read from.
    pub fn new(path: &Path, text: String) -> Self {
        let folder = FolderWatch::new(path);
        let folder = folder.map_err(|error| warn!("{error}: the configuration file is looked at every {FALLBACK:?}"));
        Self { path: path.to_owned(), text, folder: folder.ok(), problem: None }
    }

    /// Waits for another content. Returns what to say about it.
    pub async fn updated(mut self) -> String {
        // It may have changed between being read and being watched.
        while !self.differs() {
            match &mut self.folder {
                Some(folder) => folder.changed().await,
                None => tokio::time::sleep(FALLBACK).await,
            }
        }
        let path = self.path.display();
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
