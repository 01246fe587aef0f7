//! The token in a file, by which the API server knows us.
//!
//! In: a path. Out: the header of every request. Must not know: what is asked for.
//! The kubelet replaces the file before the token expires. It is read for each request, which are few: so a new one
//! counts at once, also after a 401.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use tower::util::MapRequestLayer;
use tracing::warn;

/// A file that holds a bearer token.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<HeaderValue>>,
}

impl TokenFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// There is no token in it.
    pub fn new(path: PathBuf) -> Result<Self, String> {
        let last = read(&path).map_err(|problem| format!("tokenFile {}: {problem}", path.display()))?;
        Ok(Self { path, last: Arc::new(Mutex::new(last)) })
    }

    /// What is in it now; what was there last if that is nothing.
    fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.path) {
            Ok(header) => last.clone_from(&header),
            Err(problem) => warn!("tokenFile {}: {problem}; the last token serves on", self.path.display()),
        }
        last.clone()
    }

    /// Puts the token on each request of a client.
    pub fn layer<B>(self) -> MapRequestLayer<impl Fn(Request<B>) -> Request<B> + Clone> {
        MapRequestLayer::new(move |mut request: Request<B>| {
            request.headers_mut().insert(AUTHORIZATION, self.header());
            request
        })
    }
}

/// The token itself has no blanks around it, files often end with a newline.
fn read(path: &Path) -> Result<HeaderValue, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let token = text.trim();
    if token.is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| "what is in it cannot be a token: it has line breaks or control characters".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use tower::{Layer, Service, service_fn};

    use super::*;

    fn sent(file: &TokenFile) -> String {
        let echo =
            service_fn(|request: Request<()>| async move { Ok::<_, ()>(request.headers()[AUTHORIZATION].clone()) });
        let answer = file.clone().layer().layer(echo).call(Request::new(()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let header = runtime.block_on(answer).expect("an echo");
        assert!(header.is_sensitive(), "it would be in logs");
        header.to_str().expect("text").to_owned()
    }

    #[test]
    fn what_is_in_the_file_now_is_sent_without_blanks_around_it() {
        let path = std::env::temp_dir().join(format!("token-{}", std::process::id()));
        assert!(TokenFile::new(path.clone()).is_err_and(|problem| problem.contains("tokenFile /")));
        for nothing in ["", " \n"] {
            std::fs::write(&path, nothing).expect("written");
            assert!(TokenFile::new(path.clone()).is_err_and(|problem| problem.ends_with("it is empty")));
        }
        std::fs::write(&path, "one\n").expect("written");
        let file = TokenFile::new(path.clone()).expect("a token");
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
