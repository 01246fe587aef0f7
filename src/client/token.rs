//! Bearer tokens, fixed or in a file.
//!
//! The kubelet replaces a projected token before it expires. Requests are few, so the file is read for each: a new
//! token takes
//! effect at once, also after a 401.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use tracing::warn;

/// A file with a bearer token.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<HeaderValue>>,
}

impl TokenFile {
    /// Reads the file. `fallback`: the header to use while the file has no valid token.
    ///
    /// # Errors
    /// Neither a valid token in the file nor a fallback.
    pub fn new(path: PathBuf, fallback: Option<HeaderValue>) -> Result<Self, String> {
        let last = read(&path).or_else(|problem| fallback.ok_or(problem));
        let last = last.map_err(|problem| format!("tokenFile {}: {problem}", path.display()))?;
        Ok(Self { path, last: Arc::new(Mutex::new(last)) })
    }

    /// `Bearer TOKEN` with the current token, or with the last valid one if the file cannot be read.
    pub fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.path) {
            Ok(header) => last.clone_from(&header),
            Err(problem) => {
                warn!("Failed to read tokenFile {}, using the last valid token: {problem}", self.path.display())
            }
        }
        last.clone()
    }
}

fn read(path: &Path) -> Result<HeaderValue, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        token => bearer(token),
    }
}

/// `Bearer TOKEN`, marked as sensitive. Surrounding whitespace is trimmed: files often end with a newline.
///
/// # Errors
/// Characters that a header cannot contain. The message does not show the token.
pub fn bearer(token: &str) -> Result<HeaderValue, String> {
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| "the token has line breaks or control characters".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(file: &TokenFile) -> String {
        let header = file.header();
        assert!(header.is_sensitive(), "it would be in logs");
        header.to_str().expect("text").to_owned()
    }

    #[test]
    fn the_current_token_of_the_file_is_sent_without_surrounding_blanks() {
        let path = std::env::temp_dir().join(format!("token-{}", std::process::id()));
        assert!(TokenFile::new(path.clone(), None).is_err_and(|problem| problem.contains("tokenFile /")));
        for nothing in ["", " \n"] {
            std::fs::write(&path, nothing).expect("written");
            assert!(TokenFile::new(path.clone(), None).is_err_and(|problem| problem.ends_with("it is empty")));
        }
        std::fs::write(&path, "one\n").expect("written");
        let file = TokenFile::new(path.clone(), None).expect("a token");
        assert_eq!(sent(&file), "Bearer one");
        std::fs::write(&path, "two").expect("written");
        assert_eq!(sent(&file), "Bearer two");
        for broken in ["", "th\nree"] {
            std::fs::write(&path, broken).expect("written");
            assert_eq!(sent(&file), "Bearer two");
        }
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(sent(&file), "Bearer two");
    }
}
