//! A small but faithful Kubernetes API server that tests can trip up.
//!
//! It serves lists, pages, watches and streamed lists over real HTTP/1.1, in JSON and protobuf, from the objects that a
//! test gives it; [`Fault`] lists what can go wrong. It knows neither the proxy nor any Kubernetes client. What it
//! answers is held against recordings of a kube-apiserver 1.36.2 (`golden/apiserver`).
//!
//! It validates and defaults nothing: what a test applies is what clients get, so a test can also serve what no
//! real server would. All methods are for synchronous callers; the server runs on a thread of its own.

mod accept;
mod answer;
mod binding;
mod body;
mod cluster;
mod delivery;
mod encoding;
mod event;
mod exchange;
mod expiry;
mod fault;
mod faults;
mod http;
mod list;
mod misbehave;
mod object;
mod options;
mod protobuf;
mod request;
mod resource;
mod selector;
mod serve;
mod shared;
mod status;
mod store;
mod synthetic;
mod token;
mod watch;
mod write;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

pub use self::delivery::Pace;
pub use self::encoding::MediaTypes;
pub use self::event::End;
pub use self::fault::{Fault, Injection, Requests};
pub use self::request::Request;

use self::binding::Binding;
use self::serve::Control;
use self::shared::Shared;

/// How long the server is given to do what a test waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server; it stops when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    control: Option<UnboundedSender<Control>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port"))
    }

    /// Starts one on a listener, which may belong to another network namespace.
    ///
    /// # Panics
    /// When the thread cannot be started.
    #[must_use]
    pub fn start_on(listener: TcpListener) -> Self {
        let binding = Binding::of(&listener);
        let address = binding.address();
        let shared = Arc::new(Shared::new());
        let (control, wishes) = unbounded_channel();
        let for_thread = Arc::clone(&shared);
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            runtime.block_on(serve::run(listener, binding, for_thread, wishes));
        };
        let thread = std::thread::Builder::new().name("apiserver".into()).spawn(serve).expect("a thread starts");
        Self { shared, address, control: Some(control), thread: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig into `dir` and returns its path; it has the token, if one is required by now.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn kubeconfig(&self, dir: &Path) -> PathBuf {
        let user = match &self.shared.state().token {
            Some(token) => format!("{{token: {token:?}}}"),
            None => "{}".to_owned(),
        };
        self.kubeconfig_with(dir, &user)
    }

    /// Writes a kubeconfig into `dir` and returns its path; `user` says, in YAML, who the proxy is.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn kubeconfig_with(&self, dir: &Path, user: &str) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster: {{server: {:?}}}\n\
             users:\n- name: kube-proxy\n  user: {user}\n\
             contexts:\n- name: test\n  context: {{cluster: test, user: kube-proxy}}\n",
            self.url()
        );
        let path = dir.join("kubeconfig");
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Every request so far, in the order of arrival, answered or not.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.state().requests.clear();
    }

    /// How many watches of a kind are open.
    #[must_use]
    pub fn watching(&self, kind: &str) -> usize {
        self.shared.state().store.watching(kind)
    }

    /// Blocks until this many watches of a kind are open.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn wait_for_watches(&self, kind: &str, count: usize) {
        let done = self.shared.wait(PATIENCE, |state| state.store.watching(kind) == count);
        assert!(done, "{} watches of {kind} are open, not {count}", self.watching(kind));
    }

    /// Blocks until the requests so far fulfil `done`; `what` is for the message.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn wait_for_requests(&self, what: &str, mut done: impl FnMut(&[Request]) -> bool) {
        let done = self.shared.wait(PATIENCE, |state| done(&state.requests));
        assert!(done, "still waiting for {what}; requests so far: {:#?}", self.requests());
    }

    fn control(&self, wish: impl FnOnce(std::sync::mpsc::Sender<()>) -> Control) {
        let (done, is_done) = std::sync::mpsc::channel();
        let control = self.control.as_ref().expect("the server is not dropped");
        control.send(wish(done)).expect("the server's thread lives");
        is_done.recv().expect("the server's thread lives");
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.control = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
